"""Measure one rotation of q and k by every implementation, and the plain copy that limits its speed.

Shapes: B batch rows, H heads, T tokens, S sampled tokens, D rotary channels of a head, P pairs (D/2).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from benchmarks.speed.cases import Case, Inputs
from benchmarks.speed.cuda_timing import make_graph_timer, make_launch_timer
from benchmarks.speed.environment import current_device
from benchmarks.speed.implementations import IMPLEMENTATIONS, Implementation
from benchmarks.speed.implementations.copies import LARGE_PAGES
from benchmarks.speed.results import NotMeasuredError, describe_failure
from benchmarks.speed.timing import make_timer, quartiles, relative_speed, round_seconds, run_in_rounds

_MAX_CHECKED_TOKENS = 1024  # per row
# In units of the dtype's rounding, relative to the length of a pair: tables, products and sums in bfloat16 make five.
_MAX_ERROR = 8
_MAX_CASE_SECONDS = 10.0  # after this time no further round of a case begins


def measure_rotation(
    case: Case, rounds: int, implementations: Mapping[str, Implementation] = IMPLEMENTATIONS
) -> dict[str, Any]:
    """Check every implementation against float64, then time the correct ones in alternating rounds.

    Returns the row of the case. Its `contestants` hold for each implementation:
        taken, seconds: seconds per call in every round, and their quartiles.
        gb_per_second: the bytes that must move divided by the median.
        of_limit: speed relative to the copy of its kind, into new memory, or into existing memory if in place.
        of_large_pages: speed of ropewalk out of place relative to the copy into large pages.
        best_peer, of_best_peer: the fastest peer, in place or not like this one if there is any, and the speed relative
            to it.
        error: the largest error, relative to the length of a pair.
        launch: on CUDA devices, quartiles of the seconds until a call returns.
        graph, graph_of_limit: on CUDA devices, quartiles of the seconds per call in a CUDA graph, and the speed
            relative to the copy of its kind in one.
        launch_reason, graph_reason: why these two were not timed, instead of them.
        reason: why it was not timed, instead of all these.
    A row whose case cannot be measured at all, for lack of memory for example, has a `reason` and no contestants.
    """
    row = {
        "shape": case.shape.name,
        "batch": case.batch,
        "tokens": case.tokens,
        "dtype": case.dtype_name,
        "bytes": case.bytes_moved,
    }
    try:
        with torch.inference_mode(), current_device(case.device):
            contestants, seconds = _check_and_time(Inputs(case), rounds, implementations)
    except Exception as error:  # smaller cases may still fit
        return {**row, "reason": describe_failure(error)}
    for name in seconds:
        contestants[name] |= _summarize(name, seconds, implementations, case)
    return {**row, "rounds": max(map(len, seconds.values()), default=0), "contestants": contestants}


def _check_and_time(
    inputs: Inputs, rounds: int, implementations: Mapping[str, Implementation]
) -> tuple[dict[str, dict[str, Any]], dict[str, list[float]]]:
    """Return facts about every implementation, and the seconds of those that never failed."""
    case = inputs.case
    contestants: dict[str, dict[str, Any]] = {}
    calls: dict[str, Callable[[], object]] = {}
    timers: dict[str, Callable[[], float]] = {}

    def on_failure(name: str, error: Exception) -> None:
        contestants[name]["reason"] = describe_failure(error)
        if implementations[name].in_place and name in calls:
            inputs.fill()  # it may have left anything in q and k

    for name, implementation in implementations.items():
        contestants[name] = {"role": implementation.role, "in_place": implementation.in_place}
        try:
            unavailable_reason = implementation.unavailable_reason(case)
            if unavailable_reason is not None:
                raise NotMeasuredError(unavailable_reason)
            calls[name] = implementation.prepare(inputs)
            if implementation.role != "limit":
                contestants[name]["error"] = _check(implementation, inputs, calls[name])
            before_batch = inputs.prepare_in_place_rotations if implementation.in_place else None
            timers[name] = make_timer(calls[name], case.device, before_batch)
        except Exception as error:  # other projects' code may fail in any way, which must not end the benchmark
            on_failure(name, error)
    seconds = run_in_rounds(timers, rounds, _MAX_CASE_SECONDS, on_failure)
    if case.device.type == "cuda":
        timed_calls = {name: calls[name] for name in seconds}
        for part, make_part_timer in (("launch", make_launch_timer), ("graph", make_graph_timer)):
            part_seconds = time_part(part, make_part_timer, timed_calls, inputs, rounds, implementations, contestants)
            for name, values in part_seconds.items():
                contestants[name][part] = quartiles(values)
                limit = _limit_of(implementations[name])
                if part == "graph" and implementations[name].role != "limit" and limit in part_seconds:
                    contestants[name]["graph_of_limit"] = relative_speed(values, part_seconds[limit])
    return contestants, seconds


def time_part(
    part: str,
    make_part_timer: Callable[..., Callable[[], float]],
    calls: Mapping[str, Callable[[], object]],
    inputs: Inputs,
    rounds: int,
    implementations: Mapping[str, Implementation],
    contestants: Mapping[str, dict[str, Any]],
) -> dict[str, list[float]]:
    """Return the seconds of one part of every call (see cuda_timing.py) in alternating rounds.

    The contestants get a `launch_reason` or `graph_reason` where that fails.
    """

    def on_failure(name: str, error: Exception) -> None:
        contestants[name][f"{part}_reason"] = describe_failure(error)

    timers = {}
    for name, call in calls.items():
        before_batch = inputs.prepare_in_place_rotations if implementations[name].in_place else None
        try:
            timers[name] = make_part_timer(call, inputs.case.device, before_batch)
        except Exception as error:  # not everything can be recorded in a CUDA graph
            on_failure(name, error)
    return run_in_rounds(timers, rounds, _MAX_CASE_SECONDS, on_failure)


def _limit_of(implementation: Implementation) -> str:
    """Return the name of the copy that limits an implementation."""
    return "copy into" if implementation.in_place else "copy"


def _summarize(
    name: str, seconds: Mapping[str, Sequence[float]], implementations: Mapping[str, Implementation], case: Case
) -> dict[str, Any]:
    """Return the timings of one implementation and its speed relative to the limits and the peers."""
    implementation, own_seconds = implementations[name], seconds[name]
    own_quartiles = quartiles(own_seconds)
    summary: dict[str, Any] = {
        "taken": round_seconds(own_seconds),
        "seconds": own_quartiles,
        "gb_per_second": case.bytes_moved / own_quartiles["median"] / 1e9,
    }
    if implementation.role == "limit":
        return summary
    limit = _limit_of(implementation)
    if limit in seconds:
        summary["of_limit"] = relative_speed(own_seconds, seconds[limit])
    if implementation.role == "ours" and not implementation.in_place and LARGE_PAGES in seconds:
        summary["of_large_pages"] = relative_speed(own_seconds, seconds[LARGE_PAGES])
    peers = [other for other in seconds if other != name and implementations[other].role == "peer"]
    like_peers = [other for other in peers if implementations[other].in_place == implementation.in_place]
    if peers:
        best = min(like_peers or peers, key=lambda peer: quartiles(seconds[peer])["median"])
        summary |= {"best_peer": best, "of_best_peer": relative_speed(own_seconds, seconds[best])}
    return summary


def _check(implementation: Implementation, inputs: Inputs, call: Callable[[], object]) -> float:
    """Return the largest error of one call, relative to the length of the pair.

    Raises NotMeasuredError if it is too large.
    """
    tokens = inputs.case.tokens
    sample_S = torch.linspace(0, tokens - 1, min(tokens, _MAX_CHECKED_TOKENS), device=inputs.case.device).round().long()
    before = [x_BHTD[:, :, sample_S].double() for x_BHTD in (inputs.q_BHTD, inputs.k_BHTD)]
    results = implementation.get_result(inputs, call())
    positions_BS = inputs.positions_BT[:, sample_S]
    largest = 0.0
    for x_BHSD, result_BHTD in zip(before, results, strict=True):
        error_BHSD = result_BHTD[:, :, sample_S].double() - rotate_float64(x_BHSD, positions_BS, inputs)
        relative_BHSP = _as_complex(error_BHSD, inputs).abs() / _as_complex(x_BHSD, inputs).abs()
        largest = max(largest, float(relative_BHSP.nan_to_num(torch.inf).max()))
    allowed = _MAX_ERROR * torch.finfo(inputs.case.dtype).eps
    if largest > allowed:
        raise NotMeasuredError(f"wrong result: off by {largest:.2g} of a pair's length, allowed {allowed:.2g}")
    return largest


def rotate_float64(x_BHSD: Tensor, positions_BS: Tensor, inputs: Inputs) -> Tensor:
    """Rotate in float64 by complex multiplication (RoFormer, arXiv 2104.09864, eq. 13)."""
    cos_BSP, sin_BSP = inputs.frequencies.cos_sin(positions_BS.cpu().numpy(), "float64")
    cis_BHSP = torch.complex(torch.from_numpy(cos_BSP), torch.from_numpy(sin_BSP))[:, None].to(x_BHSD.device)
    rotated_BHSP = _as_complex(x_BHSD, inputs) * cis_BHSP
    parts = (rotated_BHSP.real, rotated_BHSP.imag)
    return torch.stack(parts, -1).flatten(-2) if inputs.case.is_interleaved else torch.cat(parts, -1)


def _as_complex(x_BHSD: Tensor, inputs: Inputs) -> Tensor:
    """Return each pair as a complex number, [B, H, S, P]."""
    if inputs.case.is_interleaved:
        return torch.complex(x_BHSD[..., ::2], x_BHSD[..., 1::2])
    return torch.complex(*x_BHSD.chunk(2, -1))
