"""What a task is: it makes samples of a length, and scores the answers."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, TypedDict

from ropewalk import spec as specs

if TYPE_CHECKING:
    from ropewalk.evaluate.reader import Reader


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


class Outcome(TypedDict):
    """A finished sample: what was asked (`prompt`: SHA-256 of its token ids; `tokens`: their number), and what came."""

    index: int
    prompt: str
    tokens: int
    answer: str
    references: list[str]
    scores: dict[str, Any]  # numbers; of some tasks of lm-evaluation-harness, what their summary is made of
    about: dict[str, Any]
    seconds: float


class Task(ABC):
    """A kind of question, with its options: a frozen dataclass, one file a task.

    Class variables: `name`; `version`, raised whenever the same options give other samples or scores, so that results
    kept earlier are not taken for new ones; `better`, which way the scores are; `positional`, the option that stands
    for itself in a spec (`lm_eval:arc_easy`).
    """

    name: ClassVar[str]
    version: ClassVar[int] = 1
    better: ClassVar[str] = "higher"
    positional: ClassVar[str] = ""

    @property
    @abstractmethod
    def main(self) -> str:
        """The score that tables show."""

    def expand(self) -> Sequence[Task]:
        """The tasks to run for this one: itself, or the members of a suite."""
        return [self]

    def fingerprint(self) -> dict[str, str]:
        """What beyond the options determines samples and scores: digests of texts and files, versions of packages.

        Raises InputError when one of them is missing.
        """
        return {}

    @abstractmethod
    def samples(self, tokenizer: Any, length: int, count: int, seed: int) -> list[Sample]:
        """`count` samples whose prompts have at most `length` tokens, the same for the same arguments.

        Raises InputError when there is not so much to ask.
        """

    def answers(self, reader: Reader, samples: Sequence[Sample]) -> Iterator[tuple[Sample, str]]:
        """Each sample with the answer of the model, in any order, as they come."""
        return reader.generate(samples)

    @abstractmethod
    def score(self, sample: Sample, answer: str) -> dict[str, float]:
        """The scores of one answer, by name."""

    def summary(self, outcomes: Sequence[Outcome]) -> dict[str, float]:
        """The scores of a whole cell: the mean of each."""
        names = dict.fromkeys(name for outcome in outcomes for name in outcome["scores"])
        return {name: mean([o["scores"][name] for o in outcomes if name in o["scores"]]) for name in names}

    def options(self) -> dict[str, Any]:
        """All options, as they go into the key of a cell."""
        return asdict(self)  # type: ignore[call-overload]

    def __str__(self) -> str:
        return specs.write_spec(self)


def mean(numbers: Sequence[float]) -> float:
    """The arithmetic mean of at least one number."""
    return sum(numbers) / len(numbers)
