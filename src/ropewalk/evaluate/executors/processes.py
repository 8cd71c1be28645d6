"""The executor with several processes on this machine, each with its own copy of the model."""

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
from ropewalk.evaluate.executors import Executor, KeyedCell, KeyedResult, LoadFinished
from ropewalk.evaluate.executors.dispatch import Message, WorkerLostError, run_cells, worker_messages
from ropewalk.evaluate.grid import Cell
from ropewalk.evaluate.sample import SampleResult
from ropewalk.evaluate.worker import Worker

_SPAWN = multiprocessing.get_context("spawn")  # CUDA and thread pools do not survive a fork
_EXIT_TIMEOUT = 5  # seconds to wait for the exit status of a process whose pipe has closed


def process_executor(model: str, dtype: str | None, jobs: int) -> Executor:
    """Return an executor with up to `jobs` processes, which share the threads and the GPUs of this machine.

    The processes are spawned, so a script that uses them needs `if __name__ == "__main__":`.

    Args:
        model: a name that `ropewalk.load` accepts; every process loads it.
        dtype: see `ropewalk.load`.
        jobs: number of processes; no more are started than there are cells.

    Raises InputError for a model that is loaded already, because it cannot be sent to a process.
    """
    if not isinstance(model, str):
        raise InputError("jobs", jobs, "1 for a model that is loaded already", "give the name of the model instead")

    def run(cells: Sequence[KeyedCell], load_finished: LoadFinished) -> Generator[KeyedResult, None, None]:
        import torch

        count = min(jobs, len(cells))
        threads = max(1, torch.get_num_threads() // max(1, count))
        workers = [_ProcessHandle(model, dtype, index, threads) for index in range(count)]
        yield from run_cells(workers, _wait_for_message, cells, load_finished)

    return run


class _ProcessHandle:
    """A worker process and the pipe to it; see `WorkerHandle`."""

    def __init__(self, *worker_arguments: Any) -> None:
        """`worker_arguments`: those of `_worker_process` after the pipe."""
        self._worker_arguments = worker_arguments
        self._process: Any = None
        self.pipe: Connection

    def submit(self, cell: Cell, finished: Mapping[int, SampleResult]) -> None:
        if self._process is None:
            self.pipe, worker_pipe = _SPAWN.Pipe()
            self._process = _SPAWN.Process(
                target=_worker_process, args=(worker_pipe, *self._worker_arguments), daemon=True
            )
            self._process.start()
            worker_pipe.close()  # only the process holds that end now, so `receive` notices when the process ends
        with suppress(OSError):  # the process is gone, which `receive` reports
            self.pipe.send((cell, finished))

    def receive(self) -> Message:
        try:
            return self.pipe.recv()
        except (EOFError, OSError):
            self._process.join(_EXIT_TIMEOUT)
            raise WorkerLostError(f"its process ended with status {self._process.exitcode}") from None

    def terminate(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.join()
            self.pipe.close()
            self._process = None


def _wait_for_message(workers: Sequence[_ProcessHandle]) -> list[_ProcessHandle]:
    readable = wait([worker.pipe for worker in workers])
    return [worker for worker in workers if worker.pipe in readable]


def _worker_process(pipe: Connection, model: str, dtype: str | None, index: int, threads: int) -> None:
    """Run in the worker process: receive cells, send messages, until the parent kills it."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is sent to the whole group; the parent ends this process
    threading.Thread(target=_exit_with_parent, daemon=True).start()
    worker = Worker(model, dtype, before_load=lambda: _use_share_of_machine(index, threads))
    while True:
        cell, finished = pipe.recv()
        for message in worker_messages(worker, cell, finished):
            pipe.send(message)


def _use_share_of_machine(index: int, threads: int) -> None:
    """Limit this process to its share of the CPU threads, and to one of the GPUs."""
    import torch
    from tqdm import tqdm

    torch.set_num_threads(threads)
    if torch.cuda.is_available():
        torch.cuda.set_device(index % torch.cuda.device_count())
    # The default lock of tqdm is a semaphore between processes, which would leak when this process is killed.
    tqdm.set_lock(threading.RLock())


def _exit_with_parent() -> None:
    """Exit when the parent process ends, even if it was killed and whatever is computed here."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)
