"""The two parts of a call on a CUDA device: the time of the host, and that of the device without the host.

A CUDA device works through a queue, so a call returns before the device has finished. Where the device is faster, as in
decoding, the host decides. A CUDA graph records the kernels once and replays them without the host.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import torch

from benchmarks.speed.timing import make_timer, without_garbage_collection

_CALLS = 64  # at a time, so that their kernels fit into the queue of the device and no call waits
_REPEATS = 8

BeforeBatch = Callable[[int], object]  # called, untimed, with the number of calls that follow


def make_launch_timer(
    function: Callable[[], object], device: torch.device, before_batch: BeforeBatch | None = None
) -> Callable[[], float]:
    """Return a timer of the seconds until a call returns, while the device may still be working."""

    def time_launches() -> float:
        seconds = 0.0
        for _ in range(_REPEATS):
            if before_batch:
                before_batch(_CALLS)
            torch.cuda.synchronize(device)
            with without_garbage_collection():
                started = time.perf_counter()
                for _ in range(_CALLS):
                    function()
                seconds += time.perf_counter() - started
        torch.cuda.synchronize(device)
        return seconds / (_REPEATS * _CALLS)

    time_launches()
    return time_launches


def make_graph_timer(
    function: Callable[[], object], device: torch.device, before_batch: BeforeBatch | None = None
) -> Callable[[], float]:
    """Record calls in a CUDA graph and return a timer of the seconds per call when the graph is replayed.

    Raises RuntimeError if the calls cannot be recorded.
    """
    if before_batch:
        before_batch(2 * _CALLS)
    stream = torch.cuda.Stream(device)  # a recording needs another stream than the default one
    stream.wait_stream(torch.cuda.current_stream(device))
    with torch.cuda.stream(stream):
        function()  # whatever happens at the first call on a stream is not recorded
    torch.cuda.current_stream(device).wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, stream=stream):
        for _ in range(_CALLS):
            function()

    def prepare(replays: int) -> None:
        if before_batch:
            before_batch(replays * _CALLS)

    time_replays = make_timer(graph.replay, device, prepare, batch_size=4)
    return lambda: time_replays() / _CALLS
