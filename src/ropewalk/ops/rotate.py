"""Turn pairs of channels by the angles of a table.

Shapes: B batch, H heads, T tokens, D channels of a head, P pairs.
"""

from __future__ import annotations

import torch
from torch import Tensor

_BLOCK = 2**18  # numbers that are in float32 at a time


def rotate(x_BHTD: Tensor, cos_BTP: Tensor, sin_BTP: Tensor, start: int, interleaved: bool) -> Tensor:
    """`x` with the pairs of its channels from `start` on turned, and scaled where the table is; a new tensor.

    Args:
        x_BHTD: [B, H, T, D], or [B, T, D] without heads; any float dtype, computed in float32.
        cos_BTP, sin_BTP: float32; B may be 1.
        interleaved: pair i is channels (2i, 2i + 1) instead of (i, i + P), counted from `start`.
    """
    turned = torch.empty_like(x_BHTD)
    pairs = cos_BTP.shape[-1]
    end = start + 2 * pairs
    if interleaved:
        one, other = slice(start, end, 2), slice(start + 1, end, 2)
    else:
        one, other = slice(start, start + pairs), slice(start + pairs, end)
    if x_BHTD.ndim == 4:
        cos_BTP, sin_BTP = cos_BTP[:, None], sin_BTP[:, None]
    turned[..., :start], turned[..., end:] = x_BHTD[..., :start], x_BHTD[..., end:]
    tokens = x_BHTD.shape[-2]
    step = max(1, _BLOCK * tokens // max(1, x_BHTD.numel()))
    for begin in range(0, tokens, step):
        block = slice(begin, begin + step)
        a, b = x_BHTD[..., block, one].float(), x_BHTD[..., block, other].float()
        cos, sin = cos_BTP[..., block, :], sin_BTP[..., block, :]
        turned[..., block, one] = torch.addcmul(a * cos, b, sin, value=-1)
        turned[..., block, other] = torch.addcmul(b * cos, a, sin)
    return turned
