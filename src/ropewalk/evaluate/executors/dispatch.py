"""Scheduling for executors with several workers: who computes which cell, and what happens when a worker is lost."""

from __future__ import annotations

import traceback
from collections import Counter, deque
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol, TypeVar

from ropewalk.errors import InputError
from ropewalk.evaluate.executors import MAX_ATTEMPTS, KeyedCell, KeyedResult, LoadFinished
from ropewalk.evaluate.grid import Cell
from ropewalk.evaluate.sample import SampleResult
from ropewalk.evaluate.worker import CellSummary, Worker


class WorkerLostError(Exception):
    """A worker ended before its cell was finished: it was killed, ran out of memory, or its machine failed."""


@dataclass(frozen=True)
class Failure:
    """An error that was raised in a worker.

    Attributes:
        error: an InputError as it is; any other error as a RuntimeError with its text, because the original type may
            not be picklable.
    """

    error: Exception


Message = SampleResult | CellSummary | Failure  # what a worker sends; the last one of a cell is no SampleResult


def worker_messages(worker: Worker, cell: Cell, finished: Mapping[int, SampleResult]) -> Iterator[Message]:
    """Compute a cell in a worker and yield the messages to send, errors included."""
    try:
        yield from worker.run(cell, finished)
    except InputError as error:
        yield Failure(error)
    except Exception as error:
        text = str(error) if type(error) is RuntimeError else f"{type(error).__name__}: {error}"
        picklable = RuntimeError(text)
        picklable.add_note(traceback.format_exc())
        yield Failure(picklable)


class WorkerHandle(Protocol):
    """The scheduler's end of one worker. The worker starts with its first cell, and again after it was lost."""

    def submit(self, cell: Cell, finished: Mapping[int, SampleResult]) -> None:
        """Send a cell to the worker, with its samples that are finished already."""

    def receive(self) -> Message:
        """Return the next message of the worker. Raises WorkerLostError if the worker has ended."""

    def terminate(self) -> None:
        """Kill the worker if it is running."""


Handle = TypeVar("Handle", bound=WorkerHandle)


def run_cells(
    workers: Sequence[Handle],
    wait_for_message: Callable[[Sequence[Handle]], Sequence[Handle]],
    cells: Sequence[KeyedCell],
    load_finished: LoadFinished,
) -> Generator[KeyedResult, None, None]:
    """Compute the cells on the workers and yield results as they arrive.

    A cell whose worker was lost is submitted again without the samples that are finished by then.

    Args:
        workers: handles of the workers; each computes one cell at a time.
        wait_for_message: waits until at least one of the given handles has a message, and returns those that have.
        cells: the cells, in the order to start them.
        load_finished: returns the finished samples of a cell.

    Raises RuntimeError if the worker of a cell is lost `MAX_ATTEMPTS` times without finishing a sample, and the error
    of a worker that fails.
    """
    waiting, idle = deque(cells), deque(workers)
    busy: dict[Handle, KeyedCell] = {}
    losses: Counter[str] = Counter()
    try:
        while waiting or busy:
            while waiting and idle:
                worker, (key, cell) = idle.popleft(), waiting.popleft()
                worker.submit(cell, load_finished(key))
                busy[worker] = key, cell
            for worker in wait_for_message(list(busy)):
                key, cell = busy[worker]
                try:
                    message = worker.receive()
                except WorkerLostError as error:
                    losses[key] += 1
                    if losses[key] == MAX_ATTEMPTS:
                        name = f"{cell.task} at {cell.length:,} tokens under {cell.column}"
                        raise RuntimeError(f"the worker on {name} was lost {MAX_ATTEMPTS} times: {error}") from None
                    worker.terminate()
                    del busy[worker]
                    idle.append(worker)
                    waiting.appendleft((key, cell))
                    continue
                if isinstance(message, Failure):
                    raise message.error
                yield key, message
                losses[key] = 0
                if isinstance(message, CellSummary):
                    del busy[worker]
                    idle.append(worker)
                    if not waiting:
                        worker.terminate()  # frees its memory for the workers that are still busy
    finally:
        for worker in workers:
            worker.terminate()
