"""`rotate`: rotate the pairs of channels of q and k by their positions.

Shapes: B batch rows, H heads, T tokens, D channels of a head, P pairs, N sequences packed into one row.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import get_args

import torch
from torch import Tensor

from ropewalk.errors import InputError
from ropewalk.frequencies import Frequencies
from ropewalk.ops import custom_op
from ropewalk.ops.angles import (
    FixedPointFrequencies,
    differentiable_tables,
    tables_from_fixed_point,
    tensor_to_fixed_point,
    to_fixed_point,
)
from ropewalk.ops.backends import backend_for
from ropewalk.ops.backends.base import Launch
from ropewalk.ops.checks import check_angles, check_q_and_k
from ropewalk.ops.prepared import find_launch, keep_launch, signature_of
from ropewalk.rope import Layout

LAYOUTS: tuple[str, ...] = get_args(Layout)

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
    """Rotate pair i of every head at position x by the angle x theta_i (RoFormer, arXiv 2104.09864, eq. 34).

    The angles come from `positions` and `frequencies`, and the kernel then computes cos and sin itself, exactly at
    every position; or from precomputed `tables`. Arithmetic is in float32 for every dtype of q but float64.

    Args:
        q, k: [B, H, T, D], k with any number of heads, or None; or [T, H, D] for sequences packed one after the other.
            Any strides: the transpose of [B, T, H, D] is not copied. float64, float32, bfloat16 or float16.
        positions: integers, [T] or [B, T], within +-2^31; by default 0, 1, 2 ... in each sequence.
        frequencies: `Frequencies`, or a sequence of them with one per row; the same as returned by `to_fixed_point`,
            which saves the conversion; or a tensor of inverse frequencies, rad/token, [P] or [B, P], which may require
            a gradient.
        layout: "half": pair i is channels (i, i + P); "interleaved": (2i, 2i + 1).
        tables: instead of frequencies, (cos, sin) of the pairs, each [T, P] or [B, T, P]; they may require a gradient.
        attention_factor: multiplies cos and sin, for frequencies given as a tensor; a number, or a tensor [] or [B].
        cu_seqlens: [N + 1] integers: where each packed sequence begins, from 0 on, and the end T.
        start: the first channel that rotates. Channels outside start .. start + 2P - 1 are copied unchanged.
        inverse: rotate by the opposite angles.
        in_place: overwrite q and k, and return them.

    Returns rotated q and k with the strides of the inputs. Both are differentiable in q and k, and in inverse
    frequencies, attention factor and tables given as tensors.
    Raises InputError for shapes, dtypes and devices that do not fit each other.
    """
    if layout not in LAYOUTS:
        raise InputError("layout", layout, ", ".join(LAYOUTS))
    given_angles = _angles_that_kernels_take(positions, frequencies, tables, attention_factor, cu_seqlens)
    signature, k_or_q = None, q if k is None else k
    if given_angles is not None and not custom_op.is_observed((q, k_or_q, *given_angles)):
        call = layout, start, inverse, in_place, k is None, k is q
        signature = signature_of(backend_for(q.device.type), call, q, k_or_q, given_angles)
        launch = find_launch(signature)
        if launch is not None:
            return _launch(launch, q, k, given_angles, in_place)
    xs = [q] if k is None else [q, k]
    is_packed = q.ndim == 3
    views = [x.transpose(0, 1)[None] for x in xs] if is_packed else xs
    check_q_and_k(views[0], views[-1])
    angles = _resolve_angles(views[0], positions, frequencies, tables, attention_factor, cu_seqlens)
    check_angles(views[0], angles, start)
    if in_place and (k is q or any(_overlaps_itself(x) for x in views)):
        raise InputError("in_place", "heads that share memory", "heads that do not overlap: copy them first")
    function = custom_op.rotate_in_place if in_place else custom_op.rotate
    options = start, layout == "interleaved", inverse
    rotated = function(views, angles, *options)
    if is_packed:
        rotated = [x[0].transpose(0, 1) for x in rotated]
    elif signature is not None and given_angles is not None and _have_same_data(angles, given_angles):
        launch = custom_op.prepare(views, rotated, angles, *options)
        if launch is not None:
            keep_launch(signature, launch)
    return rotated[0], rotated[1] if len(rotated) > 1 else None


def _angles_that_kernels_take(
    positions: Tensor | None,
    frequencies: FrequenciesLike | None,
    tables: tuple[Tensor, Tensor] | None,
    attention_factor: float | Tensor,
    cu_seqlens: Tensor | None,
) -> Sequence[Tensor] | None:
    """Return the angles as they were given if kernels may be able to read them so; None if they must be converted."""
    if cu_seqlens is not None or isinstance(attention_factor, Tensor) or attention_factor != 1:
        return None
    if tables is not None:
        return tables if positions is None and frequencies is None and len(tables) == 2 else None
    if positions is not None and isinstance(frequencies, FixedPointFrequencies):
        return positions, frequencies.high_BP, frequencies.attention_factors_B
    return None


def _have_same_data(angles: Sequence[Tensor], given_angles: Sequence[Tensor]) -> bool:
    """Return whether the angles are those that were given, except for a dimension of size 1."""
    pairs = zip(angles, given_angles, strict=False)
    return len(angles) == len(given_angles) and all(
        part.data_ptr() == given.data_ptr() and part.dtype == given.dtype for part, given in pairs
    )


def _launch(
    launch: Launch, q: Tensor, k: Tensor | None, angles: Sequence[Tensor], in_place: bool
) -> tuple[Tensor, Tensor | None]:
    """Launch a rotation whose signature has passed all checks before."""
    q_out = q if in_place else torch.empty_like(q)
    k_out = k if in_place or k is None else torch.empty_like(k)
    q_addresses = q.data_ptr(), q_out.data_ptr()
    k_addresses = q_addresses if k is None or k_out is None else (k.data_ptr(), k_out.data_ptr())
    launch(*q_addresses, *k_addresses, angles[0].data_ptr(), angles[1].data_ptr(), angles[-1].data_ptr())
    if in_place:
        custom_op.record_overwrite([q] if k is None else [q, k])
    return q_out, k_out


def _overlaps_itself(x: Tensor) -> bool:
    """Return whether two elements share memory because a dimension was expanded."""
    strides = x.stride()
    return 0 in strides and any(size > 1 and stride == 0 for size, stride in zip(x.shape, strides, strict=True))


def _resolve_angles(
    q_BHTD: Tensor,
    positions: Tensor | None,
    frequencies: FrequenciesLike | None,
    tables: tuple[Tensor, Tensor] | None,
    attention_factor: float | Tensor,
    cu_seqlens: Tensor | None,
) -> list[Tensor]:
    """Return the angles of the call in one of the representations of `ropewalk.ops.angles`."""
    if (tables is None) == (frequencies is None):
        raise InputError("frequencies", frequencies, "either frequencies or tables, not both")
    if not isinstance(frequencies, Tensor) and (isinstance(attention_factor, Tensor) or attention_factor != 1):
        raise InputError("attention_factor", attention_factor, "1: tables and `Frequencies` include their own")
    table_dtype = torch.float64 if q_BHTD.dtype == torch.float64 else torch.float32
    if tables is not None:
        if positions is not None or cu_seqlens is not None:
            raise InputError("positions", "positions or cu_seqlens", "none with tables, which are for fixed positions")
        return _check_tables(q_BHTD, tables, table_dtype)
    positions_BT = _resolve_positions(q_BHTD, positions, cu_seqlens)
    if isinstance(frequencies, Tensor):
        if frequencies.ndim not in (1, 2) or not frequencies.is_floating_point():
            found = f"{list(frequencies.shape)} of {frequencies.dtype}"
            raise InputError("frequencies", found, "[P] or [B, P], rad/token")
        inv_freq_BP = frequencies.reshape(-1, frequencies.shape[-1])
        factors_B = torch.as_tensor(attention_factor, dtype=torch.float64, device=q_BHTD.device).reshape(-1)
        if torch.is_grad_enabled() and (inv_freq_BP.requires_grad or factors_B.requires_grad):
            return list(differentiable_tables(positions_BT, inv_freq_BP, factors_B, table_dtype))
        fixed_point = tensor_to_fixed_point(inv_freq_BP, factors_B)
    elif isinstance(frequencies, FixedPointFrequencies):
        fixed_point = frequencies
    else:
        fixed_point = to_fixed_point(frequencies, q_BHTD.device)
    if table_dtype == torch.float64:  # the kernels compute cos and sin in float32
        return list(tables_from_fixed_point(positions_BT, fixed_point, table_dtype))
    return [positions_BT, fixed_point.high_BP, fixed_point.attention_factors_B]


def _check_tables(q_BHTD: Tensor, tables: tuple[Tensor, Tensor], dtype: torch.dtype) -> list[Tensor]:
    """Return cos and sin as [B, T, P] of `dtype`."""
    cos, sin = tables
    tokens = q_BHTD.shape[2]
    if cos.shape != sin.shape or cos.ndim not in (2, 3) or cos.shape[-2] != tokens or not cos.is_floating_point():
        found = f"{list(cos.shape)} and {list(sin.shape)}"
        raise InputError("tables", found, f"cos and sin of each pair, both [T, P] or [B, T, P] with T = {tokens}")
    parts = [part if part.dtype == dtype else part.to(dtype) for part in tables]
    return parts if cos.ndim == 3 else [part[None] for part in parts]


def _resolve_positions(q_BHTD: Tensor, positions: Tensor | None, cu_seqlens: Tensor | None) -> Tensor:
    """Return positions as [B, T] int64; B is 1 where all rows share them."""
    tokens = q_BHTD.shape[2]
    if positions is None:
        position_T = torch.arange(tokens, device=q_BHTD.device)
        if cu_seqlens is not None:
            if cu_seqlens.ndim != 1 or len(cu_seqlens) < 2 or not _is_integer(cu_seqlens):
                found = f"{list(cu_seqlens.shape)} of {cu_seqlens.dtype}"
                raise InputError("cu_seqlens", found, "integers [N + 1]: where each sequence begins, and the end")
            # Index of the packed sequence that each token belongs to.
            sequence_T = torch.searchsorted(cu_seqlens, position_T, right=True, out_int32=True) - 1
            begin_T = cu_seqlens.to(torch.int64)[sequence_T.clamp(0, len(cu_seqlens) - 2)]
            position_T = position_T - begin_T
        return position_T[None]
    if cu_seqlens is not None:
        raise InputError("cu_seqlens", "cu_seqlens and positions", "one of the two")
    if positions.ndim not in (1, 2) or positions.shape[-1] != tokens or not _is_integer(positions):
        found = f"{list(positions.shape)} of {positions.dtype}"
        raise InputError("positions", found, f"integers, [T] or [B, T] with T = {tokens}")
    return positions.to(torch.int64) if positions.ndim == 2 else positions.to(torch.int64)[None]


def _is_integer(tensor: Tensor) -> bool:
    return not (tensor.is_floating_point() or tensor.is_complex() or tensor.dtype == torch.bool)
