"""The angles that a rotation turns by, in the two forms that every backend takes.

    tables          [cos, sin], each [B, T, P]: as a rotary module hands them out
    positions       [positions [B, T] int64, turns [B, P] int64, factors [B] float64]: cos and sin are formed where they
                    are used, so that no table is read; turns per token are in units of 2^-64, and what is left when
                    position x turns overflows is the fraction of a turn: the exact argument reduction of
                    `ropewalk.frequencies`, right to 2^-33 turns at every position within +-2^31

B is 1 where the rows of a batch share them. The factor multiplies cos and sin.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.utils._python_dispatch import _disable_current_modes

from ropewalk.errors import InputError
from ropewalk.frequencies import RADIANS_PER_UNIT, Frequencies, fractional_turns


class FixedPointFrequencies(NamedTuple):
    """Frequencies on a device, as the second form of angles has them: what `rotate` takes without any work.

    Attributes:
        turns_BP: turns per token, [B, P] int64 in units of 2^-64; B is 1 where the rows share them.
        factors_B: attention factors, [B] float64.
        rest_BP: what the turns leave over, in units of 2^-95, for float64.
    """

    turns_BP: Tensor
    factors_B: Tensor
    rest_BP: Tensor


@torch.compiler.assume_constant_result  # type: ignore[untyped-decorator]
def turns(
    frequencies: Frequencies | Sequence[Frequencies], device: torch.device | str = "cpu"
) -> FixedPointFrequencies:
    """Bring frequencies to a device once, for many rotations: one for all rows, or one for each.

    torch.compile takes a single one for a constant; several, or any with `dynamic=True`, have to be brought beforehand.
    """
    rows = (frequencies,) if isinstance(frequencies, Frequencies) else tuple(frequencies)
    if not rows or not all(
        isinstance(each, Frequencies) and each.inv_freq.shape == rows[0].inv_freq.shape for each in rows
    ):
        raise InputError("frequencies", rows, "one or several `Frequencies` of as many pairs, or a tensor")
    return _turns(rows, torch.device(device))


@functools.lru_cache(maxsize=64)
def _turns(rows: tuple[Frequencies, ...], device: torch.device) -> FixedPointFrequencies:
    high, low = zip(*(frequencies.turns() for frequencies in rows), strict=True)
    # They are kept for calls in every mode of torch, so they are made in none.
    with torch.inference_mode(False), torch._C._DisableFuncTorch(), _disable_current_modes():
        factors_B = torch.tensor([frequencies.attention_factor for frequencies in rows], dtype=torch.float64)
        turns_BP, rest_BP = (torch.stack([torch.from_numpy(part_P) for part_P in part]) for part in (high, low))
        return FixedPointFrequencies(turns_BP.to(device), factors_B.to(device), rest_BP.to(device))


def turns_of(inv_freq_BP: Tensor, factors_B: Tensor) -> FixedPointFrequencies:
    """The same for inverse frequencies that are a tensor, rad/token, whose turns are as right as float64 has them.

    At position 2^31 that leaves 2e-7 rad.
    """
    turns_BP = inv_freq_BP.double() / (2 * math.pi)
    # Half of it fits int64 whatever the fraction; doubling overflows into what it is modulo one turn.
    halves_BP = ((turns_BP - turns_BP.round()) * 2.0**63).to(torch.int64)
    return FixedPointFrequencies(halves_BP * 2, factors_B, torch.zeros_like(halves_BP))


def learned_tables(
    positions_BT: Tensor, inv_freq_BP: Tensor, factors_B: Tensor, dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    """cos and sin, [B, T, P], differentiable in inverse frequencies and attention factors; angles in float64."""
    angle_BTP = positions_BT[:, :, None] * inv_freq_BP.double()[:, None]
    factors_B11 = factors_B[:, None, None]
    return (angle_BTP.cos() * factors_B11).to(dtype), (angle_BTP.sin() * factors_B11).to(dtype)


def tables(angles: Sequence[Tensor], dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
    """cos and sin of either form, [B, T, P], in that dtype; of `Turns` whole, right to the rounding of float64."""
    if len(angles) == 2:
        return angles[0].to(dtype), angles[1].to(dtype)
    positions_BT, turns_BP, factors_B, *rest = angles
    rest_BP = rest[0] if rest else torch.zeros_like(turns_BP)
    reduced_BTP = fractional_turns(positions_BT[:, :, None], turns_BP[:, None], rest_BP[:, None])
    cos_BTP, sin_BTP = cos_sin(reduced_BTP, factors_B[:, None, None])
    return cos_BTP.to(dtype), sin_BTP.to(dtype)


def cos_sin(reduced: Tensor, factor: float | Tensor) -> tuple[Tensor, Tensor]:
    """cos and sin, times `factor`, of angles in units of 2^-64 turn; float64 where the device has it."""
    real = torch.float32 if reduced.device.type == "mps" else torch.float64
    angle = reduced.to(real) * RADIANS_PER_UNIT
    if isinstance(factor, Tensor):
        factor = factor.to(angle)
    return angle.cos() * factor, angle.sin() * factor


def check(q_BHTD: Tensor, angles: Sequence[Tensor], start: int) -> None:
    """Raise InputError where angles do not fit q: another device, other tokens, more rows or pairs than it has."""
    batch, _, tokens, channels = q_BHTD.shape
    pairs, most = angles[1].shape[-1], max(0, (channels - start) // 2)
    if start < 0 or not 0 < pairs <= most:
        raise InputError("pairs", f"{pairs} from channel {start} on", f"1 to {most}: q has {channels} channels")
    if angles[0].shape[1] != tokens:
        raise InputError("tokens of the angles", angles[0].shape[1], f"{tokens} as in q")
    for part in angles:
        if part.shape[0] not in (1, batch):
            raise InputError("rows of the angles", part.shape[0], f"1, or {batch} as in q")
        if part.device != q_BHTD.device:
            raise InputError("device of the angles", part.device, f"{q_BHTD.device} as q")


def pairs_of(x: Tensor, start: int, pairs: int, interleaved: bool) -> tuple[Tensor, Tensor]:
    """Views of the first and of the second channel of every pair, [..., P]."""
    turning = x[..., start : start + 2 * pairs]
    return (turning[..., ::2], turning[..., 1::2]) if interleaved else (turning[..., :pairs], turning[..., pairs:])
