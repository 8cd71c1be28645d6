"""The interface of an evaluation task: it makes prompts of a given length and scores the answers to them."""

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
    """A kind of question with its options.

    Each subclass is a frozen dataclass whose fields are the options, in a file of its own in this folder.

    Class variables:
        name: the name in specs, as in `needle:text=book.txt`.
        version: increase it whenever the same options produce other samples or scores, so that stored results of the
            old version are not used for the new one.
        higher_is_better: False if a lower score is better.
        is_fraction: whether scores are from 0 to 1, and shown as percentages.
        positional: the option whose name can be left out of a spec, as in `lm_eval:arc_easy`; empty for none.
        chat_choices: the values of `--chat` under which prompts go through the chat template of a model that has one.
    """

    name: ClassVar[str]
    version: ClassVar[int] = 1
    higher_is_better: ClassVar[bool] = True
    is_fraction: ClassVar[bool] = True
    positional: ClassVar[str] = ""
    chat_choices: ClassVar[tuple[str, ...]] = ()

    @property
    @abstractmethod
    def main_score(self) -> str:
        """The name of the score that tables show."""

    def expand(self) -> Sequence[Task]:
        """Return the tasks to run for this one: the members of a suite, or the task itself."""
        return [self]

    def fingerprint(self) -> dict[str, str]:
        """Return what determines samples and scores besides the options: digests of files, versions of packages.

        Raises InputError if a file or a package is missing.
        """
        return {}

    @abstractmethod
    def make_samples(self, tokenizer: Any, length: int, count: int, seed: int, chat: bool = False) -> list[Sample]:
        """Return samples with prompts of at most `length` tokens; equal arguments give equal samples.

        Args:
            tokenizer: of the model.
            length: most tokens of a prompt, including those of a chat template.
            count: number of samples; a task with less data may return fewer.
            seed: for everything that is drawn at random.
            chat: whether prompts go through the chat template of the tokenizer, if the task has `chat_choices`.

        Raises InputError if no prompt of this length can be made.
        """

    def generate_answers(
        self, generator: TextGenerator | ServerTextGenerator, samples: Sequence[Sample]
    ) -> Iterator[tuple[Sample, str]]:
        """Yield each sample with the answer of the model, in any order, as soon as it is known."""
        return generator.generate(samples)

    @abstractmethod
    def score(self, sample: Sample, answer: str) -> dict[str, float]:
        """Return the scores of one answer by name."""

    def summarize(self, sample_results: Sequence[SampleResult]) -> dict[str, float]:
        """Return the scores of a whole cell by name: by default the mean over the samples that have the score."""
        values: dict[str, list[float]] = {}
        for result in sample_results:
            for name, value in result["scores"].items():
                values.setdefault(name, []).append(value)
        return {name: mean(numbers) for name, numbers in values.items()}

    def options(self) -> dict[str, Any]:
        """Return all options; they are part of the key of a stored cell."""
        return asdict(self)  # type: ignore[call-overload]

    def __str__(self) -> str:
        return specs.format_spec(self)


def mean(numbers: Sequence[float]) -> float:
    """Return the arithmetic mean of at least one number."""
    return sum(numbers) / len(numbers)
