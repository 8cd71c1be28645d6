"""Scaled frequencies, and the exact cos and sin tables that they give.

An angle of position x inverse frequency is needed modulo one turn. Formed in floating point it
loses a bit of its fraction with every doubling of the position; here it is formed in fixed point,
where the integer overflow *is* the reduction modulo one turn. A frequency is kept in turns per
token as two integers, `high / 2^64 + low / 2^95`, and

    fraction of a turn, in units of 2^-64  =  position * high + (position * low >> 31)   (mod 2^64)

is off by at most 2^-64 + |position| 2^-96 turns: 1e-18 rad at position 2^31. The line is the
same for numpy and torch integers.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ropewalk.errors import InputError

MAX_POSITION = 2**31
RADIANS_PER_UNIT = 2 * math.pi / 2**64

# 2^192 / (2 pi), rounded: enough digits that a float64 frequency has its turns right to 2^-95.
_TURNS_PER_RADIAN_192 = 0x28BE60DB9391054A7F09D5F47D4D377036D8A5664F10E410
_DTYPES = ("float64", "float32", "float16")

Integers = TypeVar("Integers")


def fractional_turns(positions: Any, high: Integers, low: Integers) -> Integers:
    """Fraction of a turn at each position, as signed int64 in units of 2^-64 turn.

    Arguments are int64 arrays (numpy or torch) that broadcast; `positions` within +-2^31.
    """
    turns: Integers = positions * high + ((positions * low) >> 31)
    return turns


@dataclass(frozen=True, eq=False)
class Frequencies:
    """What one rotary embedding turns by: the result of a scaling.

    Attributes:
        inv_freq: inverse frequencies, rad/token, [dim/2] float64.
        attention_factor: multiplies cos and sin, so q.k by its square.
        softmax_factor: multiplies the model's own softmax scale (DeepSeek, arXiv 2405.04434).
    """

    inv_freq: NDArray[np.float64]
    attention_factor: float = 1.0
    softmax_factor: float = 1.0

    def __post_init__(self) -> None:
        inv_freq = np.array(self.inv_freq, dtype=np.float64)  # a copy: nobody else may write into it
        if inv_freq.ndim != 1 or not np.isfinite(inv_freq).all() or (inv_freq < 0).any():
            raise InputError("inv_freq", self.inv_freq, "a list of finite numbers of at least 0")
        inv_freq.flags.writeable = False
        object.__setattr__(self, "inv_freq", inv_freq)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Frequencies) and self._key() == other._key()

    def __hash__(self) -> int:
        return hash(self._key())

    def _key(self) -> tuple[bytes, float, float]:
        return self.inv_freq.tobytes(), self.attention_factor, self.softmax_factor

    def cosine(self, other: Frequencies, positions: ArrayLike) -> NDArray[np.float64]:
        """Cosine between a vector of even energy turned by these and by the other frequencies, at each position.

        The mean over the pairs of cos(position x (theta_i - theta'_i)): 1 where both turn alike, whatever their
        attention factors. Positions as `cos_sin` takes them, [...] whole numbers; returns [...] float64.
        """
        (cos, sin), (its_cos, its_sin) = self.cos_sin(positions, "float64"), other.cos_sin(positions, "float64")
        lengths = self.attention_factor * other.attention_factor
        return np.asarray((cos * its_cos + sin * its_sin).mean(axis=-1) / lengths)

    def to_fixed_point(self) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Turns per token as fixed point: (high, low), each [dim/2] int64; see the module's text."""
        high, low = [], []
        for inv_freq in self.inv_freq.tolist():
            numerator, denominator = float(inv_freq).as_integer_ratio()
            turns = (numerator * _TURNS_PER_RADIAN_192) // (denominator << (192 - 95))
            high.append((turns >> 31) % 2**64)
            low.append(turns % 2**31)
        return np.array(high, dtype=np.uint64).view(np.int64), np.array(low, dtype=np.int64)

    def cos_sin(self, positions: ArrayLike, dtype: str = "float32") -> tuple[NDArray[Any], NDArray[Any]]:
        """cos and sin of position x inv_freq, times the attention factor.

        Args:
            positions: whole numbers of any shape [...], within +-2^31.
            dtype: "float32", "float64" or "float16".

        Returns two arrays [..., dim/2], right to the rounding of the dtype (float64: 6e-16) at every
        such position. Raises InputError for other positions or dtypes.
        """
        if dtype not in _DTYPES:
            raise InputError("dtype", dtype, ", ".join(_DTYPES))
        given = np.asarray(positions)
        if given.dtype.kind not in "iu" and given.size:
            raise InputError("positions", given.dtype, "whole numbers")
        if given.size and max(abs(int(given.min())), abs(int(given.max()))) > MAX_POSITION:
            raise InputError("positions", f"{given.min()} to {given.max()}", "at most 2^31 either way")
        high, low = self.to_fixed_point()
        angle = fractional_turns(given.astype(np.int64)[..., None], high, low) * RADIANS_PER_UNIT
        cos, sin = self.attention_factor * np.cos(angle), self.attention_factor * np.sin(angle)
        return cos.astype(dtype), sin.astype(dtype)
