"""The work on one cell of an evaluation, in whichever process an executor runs it."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ropewalk.errors import InputError
from ropewalk.evaluate.grid import Cell
from ropewalk.evaluate.model_source import ModelSource, load_source
from ropewalk.evaluate.sample import Sample, SampleResult
from ropewalk.evaluate.server_text_generator import ServerTextGenerator
from ropewalk.evaluate.tasks import Task

if TYPE_CHECKING:
    from ropewalk.evaluate.text_generator import TextGenerator


@dataclass(frozen=True)
class CellSummary:
    """The scores of a whole cell, once all its samples are finished.

    Attributes:
        scores: by name.
    """

    scores: dict[str, float]


class Worker:
    """Computes cells with one model, which it loads when the first cell is started."""

    def __init__(
        self,
        model: ModelSource | ServerTextGenerator,
        dtype: str | None = None,
        before_load: Callable[[], None] | None = None,
    ) -> None:
        """Prepare a worker.

        Args:
            model: a name that `ropewalk.load` accepts, a loaded (model, tokenizer), or a generator on a server.
            dtype: see `ropewalk.load`.
            before_load: called before the model is loaded, to limit what it may use of the machine.
        """
        self._model = model
        self._dtype = dtype
        self._before_load = before_load
        self._generator: TextGenerator | ServerTextGenerator | None = None
        self._samples_of: tuple[Task, int, int, int, bool] | None = None
        self._samples: list[Sample] = []

    def run(self, cell: Cell, finished: Mapping[int, SampleResult]) -> Iterator[SampleResult | CellSummary]:
        """Yield the result of each sample that is not in `finished`, as it becomes known, and last the summary of all.

        Args:
            cell: the cell.
            finished: results of earlier runs, by the index of the sample.
        """
        if self._generator is None:
            self._generator = self._load_generator()
        generator = self._generator
        results = dict(finished)
        samples = self._make_samples(cell, generator.tokenizer)
        remaining = [sample for sample in samples if sample.index not in finished]
        if remaining:
            with generator.scaled(cell.scaling, cell.policy):
                started = time.perf_counter()
                for sample, answer in cell.task.generate_answers(generator, remaining):
                    seconds = time.perf_counter() - started
                    results[sample.index] = _make_result(cell.task, sample, answer, seconds)
                    yield results[sample.index]
                    started = time.perf_counter()
        in_order = [results[index] for index in sorted(results)]
        try:
            summary = cell.task.summarize(in_order)
        except (LookupError, TypeError, ValueError, ArithmeticError) as error:
            if not finished:
                raise
            found = f"stored samples of {cell.task} that it cannot summarize ({error!r})"
            raise InputError("out", found, "a whole database, or a new folder") from None
        yield CellSummary(summary)

    def _load_generator(self) -> TextGenerator | ServerTextGenerator:
        if isinstance(self._model, ServerTextGenerator):
            return self._model
        if self._before_load is not None:
            self._before_load()
        from ropewalk.evaluate.text_generator import TextGenerator

        return TextGenerator(*load_source(self._model, self._dtype))

    def _make_samples(self, cell: Cell, tokenizer: Any) -> list[Sample]:
        """Return the samples of the cell. They are kept for the next cell, which often differs in the scaling only."""
        samples_of = (cell.task, cell.length, cell.samples, cell.seed, cell.chat)
        if self._samples_of != samples_of:
            self._samples = cell.task.make_samples(tokenizer, cell.length, cell.samples, cell.seed, cell.chat)
            self._samples_of = samples_of
        return self._samples


def _make_result(task: Task, sample: Sample, answer: str, seconds: float) -> SampleResult:
    return SampleResult(
        index=sample.index,
        prompt=hashlib.sha256(repr(sample.prompt).encode()).hexdigest(),
        tokens=len(sample.prompt),
        answer=answer,
        references=list(sample.references),
        scores=task.score(sample, answer),
        about=dict(sample.metadata),
        seconds=round(seconds, 3),
    )
