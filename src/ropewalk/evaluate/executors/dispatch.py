"""What crews of several workers share: who does which cell, and what is done when a worker is lost."""

from __future__ import annotations

import traceback
from collections import Counter, deque
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol, TypeVar

from ropewalk.errors import InputError
from ropewalk.evaluate.executors import TRIES, Done, Job, News
from ropewalk.evaluate.grid import Cell
from ropewalk.evaluate.sample import SampleResult
from ropewalk.evaluate.worker import CellSummary, Worker


class LostError(Exception):
    """A worker is gone before its cell was done: killed, out of memory, or its machine went."""


@dataclass(frozen=True)
class Failure:
    """An error that a worker met: an InputError, or a RuntimeError in the words of one that might not travel."""

    error: Exception


Message = SampleResult | CellSummary | Failure


def answers(worker: Worker, cell: Cell, done: Mapping[int, SampleResult]) -> Iterator[Message]:
    """What the worker says of the cell; the last word is a summary or a failure."""
    try:
        yield from worker.run(cell, done)
    except InputError as error:
        yield Failure(error)
    except Exception as error:
        told = RuntimeError(str(error) if type(error) is RuntimeError else f"{type(error).__name__}: {error}")
        told.add_note(traceback.format_exc())
        yield Failure(told)


class WorkerHandle(Protocol):
    """A place in a crew. Its worker starts when there is a cell to do, and again after it was lost."""

    def submit(self, cell: Cell, done: Mapping[int, SampleResult]) -> None:
        """Let the worker do a cell."""

    def receive(self) -> Message:
        """The next word of the worker. Raises LostError when there will be none."""

    def terminate(self) -> None:
        """End the worker at once, if there is one."""


M = TypeVar("M", bound=WorkerHandle)


def dispatch(
    members: Sequence[M], ready: Callable[[Sequence[M]], Sequence[M]], jobs: Sequence[Job], done: Done
) -> Generator[News, None, None]:
    """Let the members do the jobs, and give what they say as it comes.

    `ready`: waits until some of these members have a word to take, and returns them. A cell whose worker was lost is
    given out again, with what is done by then; RuntimeError when it is lost `TRIES` times in a row with nothing done.
    """
    waiting, free = deque(jobs), deque(members)
    busy: dict[M, Job] = {}
    losses: Counter[str] = Counter()
    try:
        while waiting or busy:
            while waiting and free:
                member, job = free.popleft(), waiting.popleft()
                member.submit(job[1], done(job[0]))
                busy[member] = job
            for member in ready(list(busy)):
                key, cell = busy[member]
                try:
                    word = member.receive()
                except LostError as lost:
                    losses[key] += 1
                    if losses[key] == TRIES:
                        name = f"{cell.task} at {cell.length:,} tokens under {cell.column}"
                        raise RuntimeError(f"the worker on {name} was lost {TRIES} times: {lost}") from None
                    member.terminate()
                    free.append(member)
                    waiting.appendleft(busy.pop(member))
                    continue
                if isinstance(word, Failure):
                    raise word.error
                yield key, word
                losses[key] = 0
                if isinstance(word, CellSummary):
                    del busy[member]
                    free.append(member)
                    if not waiting:
                        member.terminate()  # what it holds may be what another waits for
    finally:
        for member in members:
            member.terminate()
