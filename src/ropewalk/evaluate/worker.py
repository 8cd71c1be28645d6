"""The work on one cell, wherever it is done: in this process, in another, or on a cluster."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ropewalk.evaluate.grid import Cell
from ropewalk.evaluate.sample import Sample, SampleResult
from ropewalk.evaluate.server_text_generator import ServerTextGenerator
from ropewalk.evaluate.tasks import Task

if TYPE_CHECKING:
    from ropewalk.evaluate.text_generator import TextGenerator


@dataclass(frozen=True)
class CellSummary:
    """The scores of a whole cell: all its samples are done."""

    scores: dict[str, float]


class Worker:
    """Runs cells with one model, which it loads when the first one comes.

    `model`: a name that `load` takes, a loaded (model, tokenizer), or a reader.
    """

    def __init__(self, model: str | tuple[Any, Any] | ServerTextGenerator, dtype: str | None = None) -> None:
        self._model = model
        self._dtype = dtype
        self._reader: TextGenerator | ServerTextGenerator | None = None
        self._made: tuple[tuple[Task, int, int, int], list[Sample]] | None = None

    def run(self, cell: Cell, done: Mapping[int, SampleResult]) -> Iterator[SampleResult | CellSummary]:
        """Each outcome that is not done, as it comes; at the end the summary of all."""
        reader = self._load()
        outcomes = dict(done)
        left = [sample for sample in self._samples(cell, reader.tokenizer) if sample.index not in done]
        if left:
            with reader.scaled(cell.scaling, cell.policy):
                started = time.perf_counter()
                for sample, answer in cell.task.answers(reader, left):
                    now = time.perf_counter()
                    outcome = _outcome(cell.task, sample, answer, now - started)
                    outcomes[sample.index] = outcome
                    yield outcome
                    started = time.perf_counter()
        yield CellSummary(cell.task.summary([outcomes[index] for index in sorted(outcomes)]))

    def _load(self) -> TextGenerator | ServerTextGenerator:
        if self._reader is not None:
            return self._reader
        if isinstance(self._model, ServerTextGenerator):
            self._reader = self._model
        else:
            from ropewalk.evaluate.text_generator import TextGenerator
            from ropewalk.models.load import load

            model, tokenizer = load(self._model, dtype=self._dtype) if isinstance(self._model, str) else self._model
            self._reader = TextGenerator(model, tokenizer)
        return self._reader

    def _samples(self, cell: Cell, tokenizer: Any) -> list[Sample]:
        """The samples of the cell; those of the last one, where only the scaling is another."""
        made_of = (cell.task, cell.length, cell.samples, cell.seed)
        if self._made is None or self._made[0] != made_of:
            self._made = (made_of, cell.task.samples(tokenizer, cell.length, cell.samples, cell.seed))
        return self._made[1]


def _outcome(task: Task, sample: Sample, answer: str, seconds: float) -> SampleResult:
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
