"""`rotate`: turn the pairs of channels of q and k.

Shapes: B batch, H heads, T tokens, D channels of a head, P pairs, N texts packed into one row.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ropewalk.errors import InputError
from ropewalk.frequencies import Frequencies
from ropewalk.ops import angles as forms
from ropewalk.ops import operator
from ropewalk.ops.angles import FixedPointFrequencies

LAYOUTS = ("half", "interleaved")
_DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)

FrequenciesLike = Frequencies | Sequence[Frequencies] | FixedPointFrequencies | Tensor


def rotate(
    q: Tensor,
    k: Tensor | None = None,
    positions: Tensor | None = None,
    frequencies: FrequenciesLike | None = None,
    layout: str = "half",
    *,
    tables: tuple[Tensor, Tensor] | None = None,
    attention_factor: float | Tensor = 1.0,
    cu_seqlens: Tensor | None = None,
    start: int = 0,
    inverse: bool = False,
    in_place: bool = False,
) -> tuple[Tensor, Tensor | None]:
    """Turn pair i of every head at position x by the angle x theta_i (RoFormer, arXiv 2104.09864, eq. 34).

    The angles come from `positions` and `frequencies`, and are then formed where they are used, with exact argument
    reduction; or from `tables`. They are computed with in float32 (float64 for float64), whatever the dtype of q.

    Args:
        q, k: [B, H, T, D], k with any number of heads, or None; or [T, H, D] for texts packed one after the other. Any
            strides: the transpose of [B, T, H, D] is not copied. float64, float32, bfloat16 or float16.
        positions: whole numbers, [T] or [B, T], within +-2^31; 0, 1, 2 ... when not given, in each packed text.
        frequencies: what to turn by: one for all rows or one for each (`Frequencies`, a sequence of them), the same
            brought to the device (`turns`), or a tensor of inverse frequencies, rad/token, [P] or [B, P], which may
            require a gradient.
        layout: "half": pair i is channels (i, i + P); "interleaved": (2i, 2i + 1).
        tables: instead of frequencies, cos and sin of the pairs, [T, P] or [B, T, P]; they may require a gradient.
        attention_factor: multiplies cos and sin where frequencies are a tensor; a number, or a tensor [] or [B].
        cu_seqlens: [N + 1], where the packed texts begin, from 0 on, and their end, T.
        start: the first channel that turns; channels outside start .. start + 2P - 1 stay as they are.
        inverse: turn back, by the opposite angles.
        in_place: overwrite q and k, and return them.

    Returns q and k, turned, in the order in which they lay in memory. Differentiable in q and k (their gradient is the
    rotation by the opposite angle), and in inverse frequencies, attention factor and tables where they are tensors.
    Raises InputError for shapes and dtypes that do not fit.
    """
    if layout not in LAYOUTS:
        raise InputError("layout", layout, ", ".join(LAYOUTS))
    xs = [q] if k is None else [q, k]
    packed = q.ndim == 3
    views = [x.transpose(0, 1)[None] for x in xs] if packed else xs
    _check(views)
    angles = _angles(views[0], positions, frequencies, tables, attention_factor, cu_seqlens)
    forms.check(views[0], angles, start)
    for x in views if in_place else ():
        shared = 0 in x.stride() and any(size > 1 and not step for size, step in zip(x.shape, x.stride(), strict=True))
        if shared or k is q:
            raise InputError("in_place", "heads that share memory", "heads of their own: copy them first")
    turn = operator.rotate_in_place if in_place else operator.rotate
    turned = turn(views, angles, start, layout == "interleaved", inverse)
    if packed:
        turned = [x[0].transpose(0, 1) for x in turned]
    return turned[0], turned[1] if len(turned) > 1 else None


def _check(views: Sequence[Tensor]) -> None:
    """Raise InputError where k does not fit q."""
    q, k = views[0], views[-1]
    shape, of_k = q.shape, k.shape
    if len(shape) != 4 or len(of_k) != 4:
        found = f"{q.ndim} and {k.ndim} dimensions"
        raise InputError("q and k", found, "both [B, H, T, D], or both [T, H, D] for packed texts")
    if of_k[0] != shape[0] or of_k[2:] != shape[2:]:
        raise InputError("k", list(of_k), f"the B, T and D of q, which is {list(shape)}")
    if q.dtype not in _DTYPES or k.dtype != q.dtype or k.device != q.device:
        found = f"{q.dtype} on {q.device}, and {k.dtype} on {k.device}"
        allowed = ", ".join(str(dtype).removeprefix("torch.") for dtype in _DTYPES)
        raise InputError("q and k", found, f"{allowed}; the same for both, on one device")


def _angles(
    q_BHTD: Tensor,
    positions: Tensor | None,
    frequencies: FrequenciesLike | None,
    tables: tuple[Tensor, Tensor] | None,
    attention_factor: float | Tensor,
    cu_seqlens: Tensor | None,
) -> list[Tensor]:
    """The angles, in one of the forms of angles.py."""
    if (tables is None) == (frequencies is None):
        raise InputError("frequencies", frequencies, "either frequencies or tables, one of the two")
    exact = torch.float64 if q_BHTD.dtype == torch.float64 else torch.float32
    own_factor = isinstance(attention_factor, Tensor) or attention_factor != 1
    if own_factor and not isinstance(frequencies, Tensor):
        raise InputError("attention_factor", attention_factor, "none beside tables and frequencies that have their own")
    if tables is not None:
        if positions is not None or cu_seqlens is not None:
            raise InputError("positions", "beside tables", "none: tables are of positions already")
        return _tables(q_BHTD, tables, exact)
    positions_BT = _positions(q_BHTD, positions, cu_seqlens)
    if isinstance(frequencies, Tensor):
        if frequencies.ndim not in (1, 2) or not frequencies.is_floating_point():
            raise InputError(
                "frequencies", f"{list(frequencies.shape)} of {frequencies.dtype}", "[P] or [B, P], rad/token"
            )
        inv_freq_BP = frequencies.reshape(-1, frequencies.shape[-1])
        factors_B = torch.as_tensor(attention_factor, dtype=torch.float64, device=q_BHTD.device).reshape(-1)
        if torch.is_grad_enabled() and (inv_freq_BP.requires_grad or factors_B.requires_grad):
            return list(forms.learned_tables(positions_BT, inv_freq_BP, factors_B, exact))
        device_turns = forms.turns_of(inv_freq_BP, factors_B)
    else:
        device_turns = (
            frequencies if isinstance(frequencies, FixedPointFrequencies) else forms.turns(frequencies, q_BHTD.device)
        )
    if exact == torch.float64:
        return list(forms.tables([positions_BT, *device_turns], exact))
    return [positions_BT, device_turns.turns_BP, device_turns.factors_B]


def _tables(q_BHTD: Tensor, tables: tuple[Tensor, Tensor], exact: torch.dtype) -> list[Tensor]:
    cos, sin = tables
    tokens = q_BHTD.shape[2]
    if cos.shape != sin.shape or cos.ndim not in (2, 3) or cos.shape[-2] != tokens or not cos.is_floating_point():
        found = f"{list(cos.shape)} and {list(sin.shape)}"
        raise InputError("tables", found, f"cos and sin of each pair, both [T, P] or [B, T, P] with T = {tokens}")
    parts = [part if part.dtype == exact else part.to(exact) for part in tables]
    return parts if cos.ndim == 3 else [part[None] for part in parts]


def _positions(q_BHTD: Tensor, positions: Tensor | None, cu_seqlens: Tensor | None) -> Tensor:
    """[B, T] int64; B is 1 where the rows share them."""
    tokens = q_BHTD.shape[2]
    if positions is None:
        position_T = torch.arange(tokens, device=q_BHTD.device)
        if cu_seqlens is not None:
            if cu_seqlens.ndim != 1 or len(cu_seqlens) < 2 or not _whole(cu_seqlens):
                found = f"{list(cu_seqlens.shape)} of {cu_seqlens.dtype}"
                raise InputError("cu_seqlens", found, "whole numbers [N + 1]: where each text begins, and the end")
            # Of each token, the last beginning that is not after it.
            text_T = torch.searchsorted(cu_seqlens, position_T, right=True, out_int32=True) - 1
            position_T = position_T - cu_seqlens.to(torch.int64)[text_T.clamp(0, len(cu_seqlens) - 2)]
        return position_T[None]
    if cu_seqlens is not None:
        raise InputError("cu_seqlens", "beside positions", "one of the two")
    if positions.ndim not in (1, 2) or positions.shape[-1] != tokens or not _whole(positions):
        found = f"{list(positions.shape)} of {positions.dtype}"
        raise InputError("positions", found, f"whole numbers, [T] or [B, T] with T = {tokens}")
    return positions.to(torch.int64) if positions.ndim == 2 else positions.to(torch.int64)[None]


def _whole(numbers: Tensor) -> bool:
    return not (numbers.is_floating_point() or numbers.is_complex() or numbers.dtype == torch.bool)
