"""The executor that computes all cells in this process, one after the other."""

from __future__ import annotations

from collections.abc import Generator, Sequence

from ropewalk.evaluate.executors import Executor, KeyedCell, KeyedResult, LoadFinished
from ropewalk.evaluate.worker import Worker


def in_process_executor(worker: Worker) -> Executor:
    """Return an executor that uses one worker in this process."""

    def run(cells: Sequence[KeyedCell], load_finished: LoadFinished) -> Generator[KeyedResult, None, None]:
        for key, cell in cells:
            for result in worker.run(cell, load_finished(key)):
                yield key, result

    return run
