"""The executor on a Ray cluster: one actor per worker, each with its own copy of the model."""

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

from ropewalk.errors import InputError, MissingPackageError, check_number
from ropewalk.evaluate.executors import Executor, KeyedCell, KeyedResult, LoadFinished
from ropewalk.evaluate.executors.dispatch import Message, WorkerLostError, run_cells, worker_messages
from ropewalk.evaluate.grid import Cell
from ropewalk.evaluate.sample import SampleResult
from ropewalk.evaluate.worker import Worker

_PORT_TIMEOUT = 5  # seconds for the port of the cluster to open
_CLUSTER_TIMEOUT = 30  # seconds for the cluster to accept a client
_EXPECTED_ADDRESS = "auto, or HOST:PORT of the head of a running Ray cluster that this machine is a node of"
_RAY_ERROR = "ray.exceptions."  # the line of a traceback that names Ray's own exception starts with this


def ray_executor(
    model: str, dtype: str | None, address: str = "auto", jobs: int = 0, gpus_per_worker: float = 0
) -> Executor:
    """Return an executor with workers on a Ray cluster, whose nodes need ropewalk and the model.

    Args:
        model: a name that `ropewalk.load` accepts on the nodes.
        dtype: see `ropewalk.load`.
        address: HOST:PORT of the cluster. `auto` uses the cluster that this machine belongs to, or starts one here.
        jobs: largest number of workers; 0 for as many as the cluster has room for.
        gpus_per_worker: GPUs to reserve for each worker, in addition to one CPU.

    Raises InputError for a model that is loaded already, and MissingPackageError without the package ray. The executor
    itself raises InputError for a cluster that does not answer or has no room for a worker.
    """
    check_number("gpus-per-worker", gpus_per_worker, minimum=0)
    if not isinstance(model, str):
        raise InputError("ray", "a model that is loaded already", "a model that is given by its name")
    try:
        import ray
    except ImportError:
        raise MissingPackageError("ropewalk eval --ray", "ray", "pip install 'ropewalk[ray]'") from None

    def run(cells: Sequence[KeyedCell], load_finished: LoadFinished) -> Generator[KeyedResult, None, None]:
        is_connected = ray.is_initialized()
        with redirect_stdout(sys.stderr):  # Ray reports lost workers on stdout, which is for results only
            try:
                if not is_connected:
                    _connect(ray, address)
                count = min(jobs or len(cells), len(cells), _count_places(ray, gpus_per_worker))
                actor_class = ray.remote(num_cpus=1, num_gpus=gpus_per_worker, max_restarts=0)(_WorkerActor)
                start = lambda: actor_class.remote(model, dtype, os.getcwd())  # noqa: E731
                workers = [_ActorHandle(start) for _ in range(count)]
                yield from run_cells(workers, _wait_for_message, cells, load_finished)
            finally:
                if not is_connected:
                    ray.shutdown()

    return run


class _WorkerActor:
    """The actor on a node of the cluster."""

    def __init__(self, model: str, dtype: str | None, folder: str) -> None:
        with suppress(OSError):  # so that relative paths work, if the node has the folder that the run was started in
            os.chdir(folder)
        self._worker = Worker(model, dtype)

    def run(self, cell: Cell, finished: Mapping[int, SampleResult]) -> Iterator[Message]:
        yield from worker_messages(self._worker, cell, finished)


class _ActorHandle:
    """An actor and the stream of its messages; see `WorkerHandle`."""

    def __init__(self, start: Callable[[], Any]) -> None:
        """`start`: starts an actor."""
        self._start = start
        self._actor: Any = None
        self.messages: Any = None  # yields an object reference for each message

    def submit(self, cell: Cell, finished: Mapping[int, SampleResult]) -> None:
        self._actor = self._actor or self._start()
        self.messages = self._actor.run.options(num_returns="streaming").remote(cell, finished)

    def receive(self) -> Message:
        import ray

        try:
            return ray.get(next(self.messages))
        except (ray.exceptions.RayError, StopIteration) as error:
            raise WorkerLostError(_most_informative_line(str(error))) from None

    def terminate(self) -> None:
        import ray

        if self._actor is not None:
            ray.kill(self._actor)
            self._actor = None


def _wait_for_message(workers: Sequence[_ActorHandle]) -> list[_ActorHandle]:
    import ray

    by_messages = {worker.messages: worker for worker in workers}
    return [by_messages[messages] for messages in ray.wait(list(by_messages), num_returns=1)[0]]


def _connect(ray: Any, address: str) -> None:
    """Join the cluster; with `auto`, start one here if there is none. Raises InputError if it does not answer."""
    if address == "auto":
        address = os.environ.get("RAY_ADDRESS") or address
    if address != "auto":
        _check_port(address)
    # If something other than Ray answers, ray.init waits for minutes or ends the process: try it in another one first.
    trial = [sys.executable, "-c", "import sys, ray; ray.init(sys.argv[1], log_to_driver=False)", address]
    try:
        tried = subprocess.run(trial, capture_output=True, text=True, timeout=_CLUSTER_TIMEOUT, check=False)
        reason = _most_informative_line(tried.stderr) if tried.returncode else ""
    except subprocess.TimeoutExpired:
        reason = f"no answer in {_CLUSTER_TIMEOUT} seconds"
    options = {"log_to_driver": False, "logging_level": logging.ERROR}
    if not reason:
        ray.init(address, **options)
    elif address == "auto":
        ray.init("local", include_dashboard=False, **options)
    else:
        raise InputError("ray", f"{address} ({reason})", _EXPECTED_ADDRESS)


def _check_port(address: str) -> None:
    """Raise InputError unless `address` is HOST:PORT and the port is open."""
    host, _, port = address.rpartition(":")
    if not (host and port.isdecimal() and int(port) < 2**16):
        raise InputError("ray", address, _EXPECTED_ADDRESS)
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=_PORT_TIMEOUT).close()
    except (OSError, UnicodeError) as error:
        raise InputError("ray", f"{address} ({error})", _EXPECTED_ADDRESS) from None


def _count_places(ray: Any, gpus_per_worker: float) -> int:
    """Return how many workers fit on the nodes of the cluster, each worker on one node."""
    places = 0
    for node in ray.nodes():
        if node["Alive"]:
            by_gpu = node["Resources"].get("GPU", 0) / gpus_per_worker if gpus_per_worker else math.inf
            places += int(min(node["Resources"].get("CPU", 0), by_gpu))
    if places == 0:
        raise InputError("ray", "no node with room for a worker", f"a node with 1 CPU and {gpus_per_worker:g} GPUs")
    return places


def _most_informative_line(text: str) -> str:
    """Return the line of an error text that names Ray's own exception, or else the last line."""
    lines = [line.strip()[:200] for line in text.splitlines() if line.strip()]
    ray_errors = [line.removeprefix(_RAY_ERROR) for line in lines if line.startswith(_RAY_ERROR)]
    return [*lines, *ray_errors][-1] if lines else "no error message"
