"""The unit of an evaluation: one prompt (`Sample`) and the scored answer to it (`SampleResult`)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypedDict


@dataclass(frozen=True)
class Sample:
    """One prompt of a task, with what is needed to generate and to score the answer.

    Attributes:
        index: position among the samples of its cell, from 0.
        prompt: token ids.
        references: correct answers; may be empty.
        max_new_tokens: the answer ends after this many tokens.
        stop: the answer ends before the first of these strings.
        metadata: properties that a report groups samples by, such as the depth of a needle; must be JSON.
        task_data: anything else that the task needs to score the answer; it is never stored.
    """

    index: int
    prompt: list[int]
    references: tuple[str, ...]
    max_new_tokens: int = 0
    stop: tuple[str, ...] = ()
    metadata: Mapping[str, Any] = field(default_factory=dict)
    task_data: Any = None


class SampleResult(TypedDict):
    """One answered and scored sample, as it is stored and exported.

    Keys:
        index: position among the samples of its cell, from 0.
        prompt: SHA-256 of the token ids of the prompt.
        tokens: number of tokens of the prompt.
        answer: text that the model generated.
        references: correct answers.
        scores: numbers by name; some tasks of lm-evaluation-harness store lists, which only their summary reduces.
        about: `Sample.metadata`.
        seconds: time since the previous sample of the cell; the first sample of a batch has the time of the batch.
    """

    index: int
    prompt: str
    tokens: int
    answer: str
    references: list[str]
    scores: dict[str, Any]
    about: dict[str, Any]
    seconds: float


def truncate_at_stop(text: str, stop: Sequence[str]) -> str:
    """Return the part of `text` before the first occurrence of any of the stop strings."""
    positions = [text.find(string) for string in stop]
    return text[: min((position for position in positions if position >= 0), default=len(text))]
