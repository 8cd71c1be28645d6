"""Timing of competing functions in alternating rounds.

The speed of a machine drifts. So the functions alternate, and they are compared within each round.
"""

from __future__ import annotations

import gc
import math
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch

_MIN_SECONDS = 0.02  # duration of a measurement; shorter ones measure the clock
_MIN_ROUNDS = 4
_MAX_GROWTH = 100  # of the number of calls per trial: the shortest trials are mostly overhead

Quartiles = dict[str, float]


def time_calls(function: Callable[[], object], device: torch.device, calls: int = 1) -> float:
    """Return the seconds until the device has finished `calls` calls."""
    synchronize(device)
    with without_garbage_collection():
        started = time.perf_counter()
        for _ in range(calls):
            function()
        synchronize(device)
        return time.perf_counter() - started


@contextmanager
def without_garbage_collection() -> Iterator[None]:
    """Collect no reference cycles inside, as in `timeit`: going through all objects of torch takes 0.1 s and more."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


def synchronize(device: torch.device) -> None:
    """Wait until the device has finished all submitted work."""
    if device.type != "cpu":
        torch.accelerator.synchronize(device)


def make_timer(
    function: Callable[[], object],
    device: torch.device,
    before_batch: Callable[[int], object] | None = None,
    batch_size: int = 256,
) -> Callable[[], float]:
    """Warm a function up and return a timer, which calls it for about 20 ms and returns the seconds per call.

    `before_batch` is called, untimed, before every `batch_size` calls with their number.
    """

    def time_batches(calls: int) -> float:
        seconds = 0.0
        size = batch_size if before_batch else calls
        for done in range(0, calls, size):
            batch = min(size, calls - done)
            if before_batch:
                before_batch(batch)
            seconds += time_calls(function, device, batch)
        return seconds

    time_batches(1)  # the first call compiles and allocates
    calls = 1
    # Increase the number and try again, rather than divide by the time of one call: most of that is synchronization.
    while (seconds := time_batches(calls)) < _MIN_SECONDS:
        calls = math.ceil(calls * min(1.1 * _MIN_SECONDS / max(seconds, 1e-9), _MAX_GROWTH))
    return lambda: time_batches(calls) / calls


def run_in_rounds(
    timers: Mapping[str, Callable[[], float]],
    rounds: int,
    max_seconds: float = math.inf,
    on_failure: Callable[[str, Exception], object] | None = None,
) -> dict[str, list[float]]:
    """Run all timers in every round, in reverse order in every other round.

    Args:
        timers: functions that return seconds, by name.
        rounds: number of rounds.
        max_seconds: after this time no further round begins, except for the first four.
        on_failure: called with the name of a timer that raises and its error; the other timers continue. Without it the
            error is raised.

    Returns the seconds of all rounds, for each timer that never failed.
    """
    seconds: dict[str, list[float]] = {name: [] for name in timers}
    started = time.perf_counter()
    for index in range(rounds):
        if index >= _MIN_ROUNDS and time.perf_counter() - started > max_seconds:
            break
        order = list(seconds) if index % 2 == 0 else list(reversed(seconds))
        for name in order:
            try:
                seconds[name].append(timers[name]())
            except Exception as error:
                if on_failure is None:
                    raise
                on_failure(name, error)
                del seconds[name]
    return seconds


def quartiles(values: Sequence[float]) -> Quartiles:
    """Return the median and the lower and upper quartile."""
    if len(values) == 1:
        low = median = high = values[0]
    else:
        low, median, high = statistics.quantiles(values, n=4, method="inclusive")
    return {"median": median, "low": low, "high": high}


def relative_speed(seconds: Sequence[float], other_seconds: Sequence[float]) -> Quartiles:
    """Return how many times as fast as another function a function is, from the seconds of both in the same rounds."""
    return quartiles([other / own for own, other in zip(seconds, other_seconds, strict=True)])


def round_seconds(values: Sequence[float]) -> list[float]:
    """Round each value to 5 significant digits, the precision of the clock."""
    return [float(f"{value:.5g}") for value in values]
