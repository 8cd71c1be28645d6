"""What a task is: it makes samples of a length, and scores the answers."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any, ClassVar

from ropewalk import spec as specs
from ropewalk.evaluate.sample import Sample, SampleResult

if TYPE_CHECKING:
    from ropewalk.evaluate.server_text_generator import ServerTextGenerator
    from ropewalk.evaluate.text_generator import TextGenerator


class Task(ABC):
    """A kind of question, with its options: a frozen dataclass, one file a task.

    Class variables: `name`; `version`, raised whenever the same options give other samples or scores, so that results
    kept earlier are not taken for new ones; `better`, which way the scores are; `share`, whether they run from 0 to
    1 and are shown as percent; `positional`, the option that stands for itself in a spec (`lm_eval:arc_easy`).
    """

    name: ClassVar[str]
    version: ClassVar[int] = 1
    better: ClassVar[str] = "higher"
    share: ClassVar[bool] = True
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

    def answers(
        self, reader: TextGenerator | ServerTextGenerator, samples: Sequence[Sample]
    ) -> Iterator[tuple[Sample, str]]:
        """Each sample with the answer of the model, in any order, as they come."""
        return reader.generate(samples)

    @abstractmethod
    def score(self, sample: Sample, answer: str) -> dict[str, float]:
        """The scores of one answer, by name."""

    def summary(self, sample_results: Sequence[SampleResult]) -> dict[str, float]:
        """The scores of a whole cell: the mean of each."""
        names = dict.fromkeys(name for outcome in sample_results for name in outcome["scores"])
        return {name: mean([o["scores"][name] for o in sample_results if name in o["scores"]]) for name in names}

    def options(self) -> dict[str, Any]:
        """All options, as they go into the key of a cell."""
        return asdict(self)  # type: ignore[call-overload]

    def __str__(self) -> str:
        return specs.write_spec(self)


def mean(numbers: Sequence[float]) -> float:
    """The arithmetic mean of at least one number."""
    return sum(numbers) / len(numbers)
