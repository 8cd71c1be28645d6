"""`bench rotate`: one rotation of q and k, ours, others' and the plain copy that is the limit.

Shapes: B rows of the batch, H heads, T tokens, S sampled tokens, D channels of a head, P pairs (D/2).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from benchmarks.speed.device import current
from benchmarks.speed.peers import PEERS, Peer
from benchmarks.speed.peers.copying import LARGE_PAGES
from benchmarks.speed.reason import reason_of
from benchmarks.speed.shapes import Case, Inputs
from benchmarks.speed.timing import in_turn, repeated, rounded, speed, spread
from torch import Tensor

_SAMPLED = 1024  # tokens of a row whose rotation is checked
_ALLOWED = 8  # roundings of the dtype, of a pair's length: tables, products and sums in bfloat16 make five
_CASE_SECONDS = 10.0  # after which a case begins no further round


def measure(case: Case, rounds: int, peers: Mapping[str, Peer] = PEERS) -> dict[str, Any]:
    """Check every contestant against the float64 rotation, then time those that are right, in turn.

    Returns the row of the case. Of each contestant: seconds of a call in every round (`taken`) and their spread
    (`seconds`), `gb_per_second` of the bytes that must move, speed against the copy of its kind (`of_limit`), into new
    memory for one out of place and into existing memory for one in place; of ours out of place also against the copy
    into large pages (`of_large_pages`); speed against the fastest peer of its kind, or of all where there is none
    (`of_best_peer`, `best_peer`); its largest `error` as a part of a pair's length; or the `reason` why it was not
    timed. A case that cannot be measured at all, as when memory is short, has a `reason` itself and no contestants.
    """
    row = {
        "shape": case.shape.name,
        "batch": case.batch,
        "tokens": case.tokens,
        "dtype": str(case.dtype).removeprefix("torch."),
        "bytes": case.moved,
    }
    try:
        with torch.inference_mode(), current(case.device):
            found, taken = _contest(Inputs(case), rounds, peers)
    except Exception as error:  # the cases after it may well fit
        return {**row, "reason": reason_of(error)}
    for name, seconds in taken.items():
        found[name] |= _numbers(name, seconds, taken, peers, case)
    return {**row, "rounds": max(map(len, taken.values()), default=0), "contestants": found}


def _contest(
    inputs: Inputs, rounds: int, peers: Mapping[str, Peer]
) -> tuple[dict[str, dict[str, Any]], dict[str, list[float]]]:
    """What is known of each contestant without its times, and the seconds of those that never failed."""
    case = inputs.case
    found: dict[str, dict[str, Any]] = {}
    works: dict[str, Callable[[], float]] = {}
    calls: dict[str, Callable[[], object]] = {}

    def failed(name: str, error: Exception) -> None:
        found[name]["reason"] = reason_of(error)
        if peers[name].in_place and name in calls:  # who knows what it left in q and k
            inputs.fill()

    for name, peer in peers.items():
        found[name] = {"role": peer.role, "in_place": peer.in_place}
        try:
            if (missing := peer.missing(case)) is not None:
                raise LookupError(missing)
            calls[name] = peer.prepare(inputs)
            if peer.role != "limit":
                found[name]["error"] = _checked(peer, inputs, calls[name])
            works[name] = repeated(calls[name], case.device, inputs.spend if peer.in_place else None)
        except Exception as error:  # others' code may fail in any way, and must not take the rest with it
            failed(name, error)
    return found, in_turn(works, rounds, _CASE_SECONDS, failed)


def _numbers(
    name: str, seconds: Sequence[float], taken: Mapping[str, Sequence[float]], peers: Mapping[str, Peer], case: Case
) -> dict[str, Any]:
    own = peers[name]
    numbers: dict[str, Any] = {"taken": rounded(seconds), "seconds": spread(seconds)}
    numbers["gb_per_second"] = case.moved / numbers["seconds"]["median"] / 1e9
    limit = "copy into" if own.in_place else "copy"
    if own.role != "limit" and limit in taken:
        numbers["of_limit"] = speed(seconds, taken[limit])
    if own.role == "ours" and not own.in_place and LARGE_PAGES in taken:
        numbers["of_large_pages"] = speed(seconds, taken[LARGE_PAGES])
    others = [other for other in taken if other != name and peers[other].role == "peer"]
    alike = [other for other in others if peers[other].in_place == own.in_place]
    if own.role != "limit" and others:
        best = min(alike or others, key=lambda other: spread(taken[other])["median"])
        numbers |= {"best_peer": best, "of_best_peer": speed(seconds, taken[best])}
    return numbers


def _checked(peer: Peer, inputs: Inputs, call: Callable[[], object]) -> float:
    """The largest error of a call, as a part of the length of the pair. Raises ArithmeticError for a wrong one."""
    tokens = inputs.case.tokens
    at_S = torch.linspace(0, tokens - 1, min(tokens, _SAMPLED), device=inputs.case.device).round().long()
    before = [x_BHTD[:, :, at_S].double() for x_BHTD in (inputs.q_BHTD, inputs.k_BHTD)]
    answer = peer.answer(inputs, call())
    positions_BS = inputs.positions_BT[:, at_S]
    worst = 0.0
    for x_BHSD, own_BHTD in zip(before, answer, strict=True):
        exact_BHSD = turned(x_BHSD, positions_BS, inputs)
        off_BHSP = _lengths(own_BHTD[:, :, at_S].double() - exact_BHSD, inputs)
        worst = max(worst, float((off_BHSP / _lengths(x_BHSD, inputs)).nan_to_num(torch.inf).max()))
    allowed = _ALLOWED * torch.finfo(inputs.case.dtype).eps
    if worst > allowed:
        raise ArithmeticError(f"turns wrongly: off by {worst:.2g} of a pair's length, allowed {allowed:.2g}")
    return worst


def turned(x_BHSD: Tensor, positions_BS: Tensor, inputs: Inputs) -> Tensor:
    """The rotation in float64, by complex numbers (RoFormer, arXiv 2104.09864, eq. 13)."""
    cos_BSP, sin_BSP = inputs.frequencies.cos_sin(positions_BS.cpu().numpy(), "float64")
    by_BHSP = torch.complex(torch.from_numpy(cos_BSP), torch.from_numpy(sin_BSP))[:, None].to(x_BHSD.device)
    y_BHSP = _complex(x_BHSD, inputs) * by_BHSP
    interleaved = inputs.case.shape.layout == "interleaved"
    parts = (y_BHSP.real, y_BHSP.imag)
    return torch.stack(parts, -1).flatten(-2) if interleaved else torch.cat(parts, -1)


def _complex(x_BHSD: Tensor, inputs: Inputs) -> Tensor:
    if inputs.case.shape.layout == "interleaved":
        return torch.complex(x_BHSD[..., ::2], x_BHSD[..., 1::2])
    return torch.complex(*x_BHSD.chunk(2, -1))


def _lengths(x_BHSD: Tensor, inputs: Inputs) -> Tensor:
    return _complex(x_BHSD, inputs).abs()
