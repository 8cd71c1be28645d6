"""The crew of several processes on this machine, each with a model of its own."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections.abc import Generator, Mapping, Sequence
from contextlib import suppress
from multiprocessing.connection import Connection, wait
from typing import Any

from ropewalk.errors import InputError
from ropewalk.evaluate.executors import Done, Executor, Job, News
from ropewalk.evaluate.executors.dispatch import LostError, Message, answers, dispatch
from ropewalk.evaluate.grid import Cell
from ropewalk.evaluate.sample import SampleResult
from ropewalk.evaluate.worker import Worker

_SPAWN = multiprocessing.get_context("spawn")  # CUDA and threads do not survive a fork
_GRACE = 5  # seconds for a process whose pipe has closed to end by itself


def process_executor(model: str, dtype: str | None, jobs: int) -> Executor:
    """`jobs` processes, or fewer where there are fewer cells; the threads and the GPUs are shared out among them.

    `model` and `dtype`: as `load` takes them. Raises InputError for a model that is not given by its name: it cannot be
    sent. As always with processes that are spawned, a script that runs this needs `if __name__ == "__main__":`.
    """
    if not isinstance(model, str):
        raise InputError("jobs", jobs, "1 for a model that is loaded; more for one that is given by its name")

    def work(cells: Sequence[Job], done: Done) -> Generator[News, None, None]:
        import torch

        count = min(jobs, len(cells))
        threads = max(1, torch.get_num_threads() // max(1, count))
        yield from dispatch([_Process(model, dtype, place, threads) for place in range(count)], _ready, cells, done)

    return work


class _Process:
    def __init__(self, *serves: Any) -> None:
        self._serves = serves
        self._process: Any = None
        self.pipe: Connection

    def submit(self, cell: Cell, done: Mapping[int, SampleResult]) -> None:
        if self._process is None:
            self.pipe, theirs = _SPAWN.Pipe()
            self._process = _SPAWN.Process(target=_serve, args=(theirs, *self._serves), daemon=True)
            self._process.start()
            theirs.close()  # theirs alone now, so that it closes when the process ends
        with suppress(OSError):  # a process that is gone is noticed when its answer is taken
            self.pipe.send((cell, done))

    def receive(self) -> Message:
        try:
            return self.pipe.recv()
        except (EOFError, OSError):
            self._process.join(_GRACE)
            raise LostError(f"its process ended with status {self._process.exitcode}") from None

    def terminate(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.join()
            self.pipe.close()
            self._process = None


def _ready(members: Sequence[_Process]) -> list[_Process]:
    news = wait([member.pipe for member in members])
    return [member for member in members if member.pipe in news]


def _serve(pipe: Connection, model: str, dtype: str | None, place: int, threads: int) -> None:
    """The life of a process: cells in, words out."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the parent ends this process
    threading.Thread(target=_end_with_parent, daemon=True).start()
    import torch
    from tqdm import tqdm

    tqdm.set_lock(threading.RLock())  # its own is shared with no one here, and would outlive a process that is killed
    torch.set_num_threads(threads)
    if torch.cuda.is_available():
        torch.cuda.set_device(place % torch.cuda.device_count())
    worker = Worker(model, dtype)
    while True:
        cell, done = pipe.recv()
        for word in answers(worker, cell, done):
            pipe.send(word)


def _end_with_parent() -> None:
    """However the parent ends, and whatever is computed here, no process stays behind."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)
