"""The two representations of rotation angles that backends accept, and conversions between them.

A rotation multiplies pair p of channels at token t by cos and sin of the angle position[t] x inv_freq[p]. An `angles`
list holds either of:

    tables          [cos, sin], each [B, T, P]: precomputed, as a rotary module of transformers returns them. float32,
                    or float64 for float64 channels.
    fixed point     [positions [B, T] int64, frequencies [B, P] int64, attention factors [B] float64]: the backend
                    computes the angles itself and reads no table.

In fixed point a frequency counts 2^-64 of a full rotation per token. The int64 product position x frequency overflows;
dropping the overflow drops whole rotations, so the product is the exact angle modulo 2 pi. It is correct to 2^-33
rotations at every position within +-2^31 (see `ropewalk.frequencies`).

B is 1 where all rows of the batch share the angles. The attention factor multiplies cos and sin.

Shapes: B batch rows, T tokens, P pairs.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from ropewalk.compat.torch import without_modes
from ropewalk.errors import InputError
from ropewalk.frequencies import RADIANS_PER_UNIT, Frequencies, fixed_point_angle


class FixedPointFrequencies(NamedTuple):
    """Frequencies in fixed point on a device, which `rotate` can use without any conversion.

    Attributes:
        high_BP: rotations per token, [B, P] int64, in units of 2^-64; B is 1 where all rows share them.
        low_BP: the remainder below `high_BP`, [B, P] int64, in units of 2^-95; needed for float64 tables only.
        attention_factors_B: [B] float64.
    """

    high_BP: Tensor
    low_BP: Tensor
    attention_factors_B: Tensor


@torch.compiler.assume_constant_result  # type: ignore[untyped-decorator]
def to_fixed_point(
    frequencies: Frequencies | Sequence[Frequencies], device: torch.device | str = "cpu"
) -> FixedPointFrequencies:
    """Convert frequencies to fixed point on a device, once for many rotations.

    torch.compile treats one `Frequencies` as a constant. Convert outside the compiled function if there are several or
    if it is compiled with `dynamic=True`.

    Args:
        frequencies: one for all rows of the batch, or a sequence with one per row.
        device: where the rotation will run.

    Raises InputError for anything else, and for frequencies with different numbers of pairs.
    """
    rows = (frequencies,) if isinstance(frequencies, Frequencies) else tuple(frequencies)
    if not rows or not all(
        isinstance(row, Frequencies) and row.inv_freq.shape == rows[0].inv_freq.shape for row in rows
    ):
        raise InputError("frequencies", rows, "`Frequencies`, a sequence of them with equally many pairs, or a tensor")
    return _to_fixed_point(rows, torch.device(device))


@functools.lru_cache(maxsize=64)
def _to_fixed_point(rows: tuple[Frequencies, ...], device: torch.device) -> FixedPointFrequencies:
    high, low = zip(*(frequencies.to_fixed_point() for frequencies in rows), strict=True)
    factors = [frequencies.attention_factor for frequencies in rows]
    with without_modes():  # the cache outlives the mode of the first call
        return FixedPointFrequencies(
            torch.stack([torch.from_numpy(high_P) for high_P in high]).to(device),
            torch.stack([torch.from_numpy(low_P) for low_P in low]).to(device),
            torch.tensor(factors, dtype=torch.float64).to(device),
        )


def tensor_to_fixed_point(inv_freq_BP: Tensor, attention_factors_B: Tensor) -> FixedPointFrequencies:
    """Convert a tensor of inverse frequencies, rad/token, to fixed point.

    The result has the precision of float64: at position 2^31 an angle is correct to 2e-7 rad.
    """
    rotations_BP = inv_freq_BP.double() / (2 * math.pi)
    fraction_BP = rotations_BP - rotations_BP.round()
    # fraction x 2^64 may not fit int64. Half of it does, and doubling an int64 wraps modulo one rotation.
    high_BP = (fraction_BP * 2.0**63).to(torch.int64) * 2
    return FixedPointFrequencies(high_BP, torch.zeros_like(high_BP), attention_factors_B)


def tables_from_fixed_point(
    positions_BT: Tensor, frequencies: FixedPointFrequencies, dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    """Return cos and sin at integer positions, [B, T, P] each, correct to the rounding of `dtype`."""
    high_BP, low_BP, factors_B = frequencies
    angle_BTP = fixed_point_angle(positions_BT[:, :, None], high_BP[:, None], low_BP[:, None])
    cos_BTP, sin_BTP = cos_sin_of_fixed_point(angle_BTP, factors_B[:, None, None])
    return cos_BTP.to(dtype), sin_BTP.to(dtype)


def differentiable_tables(
    positions_BT: Tensor, inv_freq_BP: Tensor, attention_factors_B: Tensor, dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    """Return cos and sin, [B, T, P] each, with gradients for inverse frequencies and attention factors."""
    angle_BTP = positions_BT[:, :, None] * inv_freq_BP.double()[:, None]
    factors_B11 = attention_factors_B[:, None, None]
    return (angle_BTP.cos() * factors_B11).to(dtype), (angle_BTP.sin() * factors_B11).to(dtype)


def as_tables(angles: Sequence[Tensor], dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Return cos and sin, [B, T, P] each, of angles in either representation."""
    if len(angles) == 2:
        return angles[0].to(dtype), angles[1].to(dtype)
    positions_BT, high_BP, factors_B = angles
    return tables_from_fixed_point(
        positions_BT, FixedPointFrequencies(high_BP, torch.zeros_like(high_BP), factors_B), dtype
    )


def cos_sin_of_fixed_point(
    angle: Tensor, factor: float | Tensor, precision: torch.dtype = torch.float64
) -> tuple[Tensor, Tensor]:
    """Return cos and sin, times `factor`, of int64 angles in units of 2^-64 of a full rotation.

    Args:
        angle: int64.
        factor: a number, or a tensor that broadcasts with the angles.
        precision: float64, or float32, which is several times as fast and off by up to 4e-7.

    The result has this precision, or float32 on devices without float64 (MPS).
    """
    real = torch.float32 if angle.device.type == "mps" else precision
    radians = angle.to(real) * RADIANS_PER_UNIT
    if isinstance(factor, Tensor):
        factor = factor.to(radians)
    return radians.cos() * factor, radians.sin() * factor


def split_pairs(x: Tensor, start: int, pairs: int, interleaved: bool) -> tuple[Tensor, Tensor]:
    """Return views of the first and the second channel of every pair, [..., P] each."""
    rotary = x[..., start : start + 2 * pairs]
    if interleaved:
        return rotary[..., ::2], rotary[..., 1::2]
    return rotary[..., :pairs], rotary[..., pairs:]
