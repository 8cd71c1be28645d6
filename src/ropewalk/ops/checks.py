"""Checks of the arguments of a rotation. Kernels read memory by shapes and dtypes, so all of them must fit."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ropewalk.errors import InputError

_DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)
_FIXED_POINT_DTYPES = [torch.int64, torch.int64, torch.float64]


def check_q_and_k(q: Tensor, k: Tensor) -> None:
    """Raise InputError if k does not fit q, or either has a shape or dtype that cannot rotate."""
    q_shape, k_shape = q.shape, k.shape
    if len(q_shape) != 4 or len(k_shape) != 4:
        found = f"{q.ndim} and {k.ndim} dimensions"
        raise InputError("q and k", found, "both [B, H, T, D], or both [T, H, D] for packed sequences")
    if k_shape[0] != q_shape[0] or k_shape[2:] != q_shape[2:]:
        raise InputError("k", list(k_shape), f"the B, T and D of q, which is {list(q_shape)}")
    if q.dtype not in _DTYPES or k.dtype != q.dtype or k.device != q.device:
        found = f"{q.dtype} on {q.device}, and {k.dtype} on {k.device}"
        allowed = ", ".join(str(dtype).removeprefix("torch.") for dtype in _DTYPES)
        raise InputError("q and k", found, f"{allowed}; the same for both, on one device")


def check_angles(q_BHTD: Tensor, angles: Sequence[Tensor], start: int) -> None:
    """Raise InputError for angles that are in no representation of angles.py, or that do not fit q."""
    batch, _, tokens, channels = q_BHTD.shape
    dtypes = [part.dtype for part in angles]
    table_dtype = torch.float64 if q_BHTD.dtype == torch.float64 else torch.float32
    if dtypes not in ([table_dtype] * 2, _FIXED_POINT_DTYPES):
        expected = f"cos and sin of {table_dtype}, or positions, frequencies and factors of {_FIXED_POINT_DTYPES}"
        raise InputError("dtypes of the angles", dtypes, expected)
    dimensions = [part.ndim for part in angles]
    if dimensions not in ([3, 3], [2, 2, 1]) or (len(angles) == 2 and angles[0].shape[1:] != angles[1].shape[1:]):
        shapes = [list(part.shape) for part in angles]
        raise InputError("shapes of the angles", shapes, "cos and sin [B, T, P] each, or [B, T], [B, P] and [B]")
    pairs, most_pairs = angles[1].shape[-1], max(0, (channels - start) // 2)
    if start < 0 or not 0 < pairs <= most_pairs:
        raise InputError("pairs", f"{pairs} from channel {start} on", f"1 to {most_pairs}: q has {channels} channels")
    if angles[0].shape[1] != tokens:
        raise InputError("tokens of the angles", angles[0].shape[1], f"{tokens} as in q")
    for part in angles:
        if part.shape[0] not in (1, batch):
            raise InputError("rows of the angles", part.shape[0], f"1, or {batch} as in q")
        if part.device != q_BHTD.device:
            raise InputError("device of the angles", part.device, f"{q_BHTD.device} as q")
