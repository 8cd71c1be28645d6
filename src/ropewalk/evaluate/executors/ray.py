"""The crew on a Ray cluster: one actor a worker, each with a model of its own, wherever Ray has room."""

from __future__ import annotations

import logging
import math
import os
import socket
import subprocess
import sys
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import redirect_stdout, suppress
from typing import Any

from ropewalk.errors import InputError, check_number
from ropewalk.evaluate.executors import Done, Executor, Job, News
from ropewalk.evaluate.executors.dispatch import LostError, Message, answers, dispatch
from ropewalk.evaluate.grid import Cell
from ropewalk.evaluate.sample import SampleResult
from ropewalk.evaluate.worker import Worker

_PATIENCE = 5, 30  # seconds for a port to open, and for a cluster to answer
_RAYS = "ray.exceptions."
_ALLOWED = "auto, or HOST:PORT of the head of a running Ray cluster that this machine is a node of"


def ray_executor(
    model: str, dtype: str | None, address: str = "auto", jobs: int = 0, gpus_per_worker: float = 0
) -> Executor:
    """Workers on a Ray cluster; ropewalk and the model must be on its nodes.

    Args:
        model, dtype: as `load` takes them, on the node of the worker.
        address: HOST:PORT of the cluster; `auto` finds the one that this machine belongs to, or starts one here.
        jobs: workers, at most; 0 for as many as the cluster holds.
        gpus_per_worker: GPUs of each; each has one CPU besides.

    Raises InputError for a model that is not given by its name, and without the package ray; the crew itself, for a
    cluster that does not answer or has no room for a worker.
    """
    check_number("gpus-per-worker", gpus_per_worker, minimum=0)
    if not isinstance(model, str):
        raise InputError("ray", "a model that is loaded", "a model that is given by its name, which nodes can load")
    try:
        import ray
    except ImportError:
        raise InputError("ray", "no package ray", "pip install 'ropewalk[ray]'") from None

    def work(cells: Sequence[Job], done: Done) -> Generator[News, None, None]:
        ours = not ray.is_initialized()
        with redirect_stdout(sys.stderr):  # where Ray says that a worker died; results alone go to standard output
            try:
                if ours:
                    _connect(ray, address)
                count = min(jobs or len(cells), len(cells), _room(ray, gpus_per_worker))
                remote = ray.remote(num_cpus=1, num_gpus=gpus_per_worker, max_restarts=0)(_Serving)
                members = [_Actor(lambda: remote.remote(model, dtype, os.getcwd())) for _ in range(count)]
                yield from dispatch(members, _ready, cells, done)
            finally:
                if ours:
                    ray.shutdown()

    return work


class _Serving:
    """What runs on the cluster."""

    def __init__(self, model: str, dtype: str | None, folder: str) -> None:
        with suppress(OSError):  # relative paths mean what they mean where the run was started, if that is here too
            os.chdir(folder)
        self._worker = Worker(model, dtype)

    def run(self, cell: Cell, done: Mapping[int, SampleResult]) -> Iterator[Message]:
        yield from answers(self._worker, cell, done)


class _Actor:
    def __init__(self, start: Callable[[], Any]) -> None:
        self._start = start
        self._actor: Any = None
        self.words: Any = None  # references, as they come

    def submit(self, cell: Cell, done: Mapping[int, SampleResult]) -> None:
        self._actor = self._actor or self._start()
        self.words = self._actor.run.options(num_returns="streaming").remote(cell, done)

    def receive(self) -> Message:
        import ray

        try:
            return ray.get(next(self.words))
        except (ray.exceptions.RayError, StopIteration) as error:
            raise LostError(_line_of(str(error))) from None

    def terminate(self) -> None:
        import ray

        if self._actor is not None:
            ray.kill(self._actor)
            self._actor = None


def _ready(members: Sequence[_Actor]) -> list[_Actor]:
    import ray

    by_words = {member.words: member for member in members}
    return [by_words[words] for words in ray.wait(list(by_words), num_returns=1)[0]]


def _connect(ray: Any, address: str) -> None:
    """Join the cluster, or with `auto`, where there is none, start one here. Raises InputError if it is silent."""
    asked = os.environ.get("RAY_ADDRESS") or address if address == "auto" else address
    if asked != "auto":
        _reach(asked)
    # Ray itself waits for minutes, or ends the process, where something else answers: another process tries it first.
    trial = [sys.executable, "-c", "import sys, ray; ray.init(sys.argv[1], log_to_driver=False)", asked]
    try:
        tried = subprocess.run(trial, capture_output=True, text=True, timeout=_PATIENCE[1], check=False)
        reason = _line_of(tried.stderr) if tried.returncode else ""
    except subprocess.TimeoutExpired:
        reason = f"no answer in {_PATIENCE[1]} seconds"
    quiet = {"log_to_driver": False, "logging_level": logging.ERROR}
    if not reason:
        ray.init(asked, **quiet)
    elif asked == "auto":
        ray.init("local", include_dashboard=False, **quiet)
    else:
        raise InputError("ray", f"{asked} ({reason})", _ALLOWED)


def _reach(address: str) -> None:
    host, _, port = address.rpartition(":")
    if not (host and port.isdecimal() and int(port) < 2**16):
        raise InputError("ray", address, _ALLOWED)
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=_PATIENCE[0]).close()
    except (OSError, UnicodeError) as error:
        raise InputError("ray", f"{address} ({error})", _ALLOWED) from None


def _room(ray: Any, gpus: float) -> int:
    """How many workers the nodes of the cluster hold."""
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    room = sum(int(min(node.get("CPU", 0), node.get("GPU", 0) / gpus if gpus else math.inf)) for node in nodes)
    if room == 0:
        raise InputError("ray", "no node with room for a worker", f"a node with 1 CPU and {gpus:g} GPUs")
    return room


def _line_of(text: str) -> str:
    """The line of an error that says most: that of Ray's own exception, or the last."""
    lines = [line.strip()[:200] for line in text.splitlines() if line.strip()]
    own = [line.removeprefix(_RAYS) for line in lines if line.startswith(_RAYS)]
    return [*lines, *own][-1] if lines else "it said nothing"
