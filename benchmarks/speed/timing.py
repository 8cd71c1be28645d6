"""Seconds, taken in turn: machines drift, so contestants alternate and are compared within a round."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Mapping, Sequence

import torch

_LEAST_SECONDS = 0.02  # what one contestant's part of a round lasts at least: shorter ones measure the clock
_LEAST_ROUNDS = 4
_MOST_GROWTH = 100  # of the number of calls at once: the shortest parts are mostly the clock and the waiting

Spread = dict[str, float]


def seconds_of(work: Callable[[], object], device: torch.device, calls: int = 1) -> float:
    """Seconds until the device has done `calls` calls."""
    synchronise(device)
    started = time.perf_counter()
    for _ in range(calls):
        work()
    synchronise(device)
    return time.perf_counter() - started


def synchronise(device: torch.device) -> None:
    """Wait until the device has done all that it was given."""
    if device.type != "cpu":
        torch.accelerator.synchronize(device)


def repeated(
    call: Callable[[], object],
    device: torch.device,
    before: Callable[[int], object] | None = None,
    at_a_time: int = 256,
) -> Callable[[], float]:
    """What makes a warm `call` as often as lasted 20 ms when it was tried, and gives the seconds of one.

    `before`: called, outside the time that is taken, ahead of every `at_a_time` calls, with their number.
    """

    def part(calls: int) -> float:
        spent, step = 0.0, at_a_time if before else calls
        for done in range(0, calls, step):
            number = min(step, calls - done)
            if before:
                before(number)
            spent += seconds_of(call, device, number)
        return spent

    part(1)  # what only a first call does
    calls = 1
    # Grown and tried again, not reckoned from one call: of a short one most is waiting for the device.
    while (spent := part(calls)) < _LEAST_SECONDS:
        calls = math.ceil(calls * min(1.1 * _LEAST_SECONDS / max(spent, 1e-9), _MOST_GROWTH))
    return lambda: part(calls) / calls


def in_turn(
    works: Mapping[str, Callable[[], float]],
    rounds: int,
    at_most: float = math.inf,
    failed: Callable[[str, Exception], object] | None = None,
) -> dict[str, list[float]]:
    """What each work gives, round after round, the order reversed in every other one.

    `at_most`: seconds after which no round begins, once there were four. `failed`: told of a work that raises, which is
    then left out, and the others go on; without it the error is raised.
    """
    taken: dict[str, list[float]] = {name: [] for name in works}
    started = time.perf_counter()
    for number in range(rounds):
        if number >= _LEAST_ROUNDS and time.perf_counter() - started > at_most:
            break
        for name in list(taken) if number % 2 == 0 else list(reversed(taken)):
            try:
                taken[name].append(works[name]())
            except Exception as error:
                if failed is None:
                    raise
                failed(name, error)
                del taken[name]
    return taken


def spread(values: Sequence[float]) -> Spread:
    """Median and quartiles."""
    low, median, high = statistics.quantiles(values, n=4, method="inclusive") if len(values) > 1 else 3 * [values[0]]
    return {"median": median, "low": low, "high": high}


def rounded(values: Sequence[float]) -> list[float]:
    """Each to 5 significant digits: more than any clock here can tell."""
    return [float(f"{value:.5g}") for value in values]


def speed(own: Sequence[float], other: Sequence[float]) -> Spread:
    """How many times as fast as the other one is, from the seconds of both in the same rounds."""
    return spread([theirs / ours for ours, theirs in zip(own, other, strict=True)])
