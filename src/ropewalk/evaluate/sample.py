"""A question to a model, and what came of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypedDict


@dataclass(frozen=True)
class Sample:
    """One question to the model.

    Attributes:
        index: its place among the samples of its cell.
        prompt: token ids.
        references: the answers that are right.
        max_new_tokens, stop: an answer ends after so many tokens, or before one of these strings.
        about: what a report groups samples by (the depth of a needle, the bin of a length); ready for JSON.
        held: what the task needs to score it beyond that; it is not kept.
    """

    index: int
    prompt: list[int]
    references: tuple[str, ...]
    max_new_tokens: int = 0
    stop: tuple[str, ...] = ()
    about: Mapping[str, Any] = field(default_factory=dict)
    held: Any = None


class SampleResult(TypedDict):
    """A finished sample: what was asked (`prompt`: SHA-256 of its token ids; `tokens`: their number), and what came.

    `seconds` since the one before it; the first of a batch has the time of all of it.
    """

    index: int
    prompt: str
    tokens: int
    answer: str
    references: list[str]
    scores: dict[str, Any]  # numbers; of some tasks of lm-evaluation-harness, what their summary is made of
    about: dict[str, Any]
    seconds: float


def before(text: str, stop: Sequence[str]) -> str:
    """`text` up to the first of the stop strings."""
    ends = [at for at in (text.find(each) for each in stop) if at >= 0]
    return text[: min(ends)] if ends else text
