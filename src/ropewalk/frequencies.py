"""Scaled frequencies, and exact cos and sin tables computed from them.

A rotary table needs the angle position x inverse frequency modulo one rotation (2 pi). Computed in floating point, this
angle loses one bit of precision with every doubling of the position. It is computed in fixed-point integers instead, in
units of 2^-64 rotation, where 64-bit overflow is exactly the reduction modulo one rotation. A frequency in rotations
per token is stored as two integers, high / 2^64 + low / 2^95, and

    angle in units of 2^-64 rotation  =  position * high + ((position * low) >> 31)   (mod 2^64)

is off by at most 2^-64 + |position| 2^-96 rotations, which is 1e-18 rad at position 2^31. The same expression works on
numpy arrays and torch tensors.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ropewalk.errors import InputError

MAX_POSITION = 2**31  # positions beyond it would exceed the error bound above
RADIANS_PER_UNIT = 2 * math.pi / 2**64  # converts fixed-point angles, in units of 2^-64 rotation

# 2^192 / (2 pi), rounded. With fewer digits, the fixed-point form of a float64 frequency would not be exact to 2^-95.
_ROTATIONS_PER_RADIAN_192 = 0x28BE60DB9391054A7F09D5F47D4D377036D8A5664F10E410
MAX_INV_FREQ = 1e24  # rad/token; larger ones would need more digits than these
_DTYPES = ("float64", "float32", "float16")

Integers = TypeVar("Integers")


def fixed_point_angle(positions: Any, high: Integers, low: Integers) -> Integers:
    """Return the angle at each position modulo one rotation, as int64 in units of 2^-64 rotation.

    Args:
        positions: int64 array or tensor, within +-2^31; must broadcast with the others.
        high, low: fixed-point frequencies, as returned by `Frequencies.to_fixed_point`.
    """
    angle: Integers = positions * high + ((positions * low) >> 31)
    return angle


@dataclass(frozen=True, eq=False)
class Frequencies:
    """The frequencies and factors that a scaling computes for one rotary embedding.

    Attributes:
        inv_freq: inverse frequencies, rad/token, [dim/2] float64, read-only.
        attention_factor: multiplies cos and sin, and therefore q.k by its square.
        softmax_factor: multiplies the model's own softmax scale (DeepSeek-V2, arXiv 2405.04434).
    """

    inv_freq: NDArray[np.float64]
    attention_factor: float = 1.0
    softmax_factor: float = 1.0

    def __post_init__(self) -> None:
        inv_freq = np.array(self.inv_freq, dtype=np.float64)  # a copy, so that the caller cannot modify it later
        if inv_freq.ndim != 1 or not ((inv_freq >= 0) & (inv_freq <= MAX_INV_FREQ)).all():
            raise InputError("inv_freq", self.inv_freq, f"a list of numbers from 0 to {MAX_INV_FREQ:g} rad/token")
        inv_freq.flags.writeable = False
        object.__setattr__(self, "inv_freq", inv_freq)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Frequencies) and self._key() == other._key()

    def __hash__(self) -> int:
        return hash(self._key())

    def _key(self) -> tuple[Any, ...]:
        return self.inv_freq.tobytes(), self.attention_factor, self.softmax_factor

    def cosine_similarity(self, other: Frequencies, positions: ArrayLike) -> NDArray[np.float64]:
        """Return how similar the rotations by two sets of frequencies are, at each position.

        This is the cosine between a vector with the same norm in every channel pair rotated by `self` and by `other`:
        the mean over the pairs of cos(position x (theta_i - theta'_i)). It is 1 where both rotate equally and ignores
        the attention factors.

        Args:
            other: frequencies with the same number of pairs.
            positions: integers of any shape [...], within +-2^31.

        Returns an array [...].
        """
        cos, sin = self.cos_sin(positions, "float64")
        other_cos, other_sin = other.cos_sin(positions, "float64")
        mean = (cos * other_cos + sin * other_sin).mean(axis=-1)
        return np.asarray(mean / (self.attention_factor * other.attention_factor))

    def to_fixed_point(self) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Return the frequencies in rotations per token as fixed-point integers (high, low), each [dim/2] int64.

        The module docstring defines the format. The computation uses Python integers, so it is exact.
        """
        high, low = [], []
        for inv_freq in self.inv_freq.tolist():
            numerator, denominator = float(inv_freq).as_integer_ratio()
            units = (numerator * _ROTATIONS_PER_RADIAN_192) // (denominator << (192 - 95))  # of 2^-95 rotation
            high.append((units >> 31) % 2**64)
            low.append(units % 2**31)
        return np.array(high, dtype=np.uint64).view(np.int64), np.array(low, dtype=np.int64)

    def cos_sin(self, positions: ArrayLike, dtype: str = "float32") -> tuple[NDArray[Any], NDArray[Any]]:
        """Return cos and sin of position x inv_freq, multiplied by the attention factor.

        Args:
            positions: integers of any shape [...], within +-2^31.
            dtype: "float32", "float64" or "float16".

        Returns two arrays [..., dim/2]. They are correct to the rounding of the dtype (float64: 6e-16) at every
        position. Raises InputError for other positions or dtypes.
        """
        if dtype not in _DTYPES:
            raise InputError("dtype", dtype, ", ".join(_DTYPES))
        position_array = np.asarray(positions)
        if position_array.dtype.kind not in "iu" and position_array.size:
            raise InputError("positions", position_array.dtype, "integers")
        if position_array.size and max(abs(int(position_array.min())), abs(int(position_array.max()))) > MAX_POSITION:
            raise InputError(
                "positions", f"{position_array.min()} to {position_array.max()}", "positions from -2^31 to 2^31"
            )
        high, low = self.to_fixed_point()
        angle = fixed_point_angle(position_array.astype(np.int64)[..., None], high, low) * RADIANS_PER_UNIT
        cos, sin = self.attention_factor * np.cos(angle), self.attention_factor * np.sin(angle)
        return cos.astype(dtype), sin.astype(dtype)
