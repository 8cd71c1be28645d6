"""The unscaled rotary position embedding (RoPE) of a model; every scaling starts from one."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from numbers import Integral
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from ropewalk.errors import InputError, check_length, check_number

Layout = Literal["half", "interleaved"]


class RotaryDimError(InputError):
    """Raised for a number of rotary dimensions that is odd or out of range."""

    def __init__(self, dim: object) -> None:
        super().__init__("dim", dim, "an even number of rotary dimensions, from 2 to 65,536")


@dataclass(frozen=True)
class Rope:
    """The rotary embedding of one attention head (RoFormer, arXiv 2104.09864, eq. 15).

    Args:
        dim: rotary dimensions of one head, an even number.
        base: RoPE theta.
        original_length: tokens the model was trained on; most scalings need it.
        layout: "half" rotates the channels (x_i, x_{i + dim/2}) together, "interleaved" (x_{2i}, x_{2i+1}).

    Raises InputError for an odd or non-positive dim, a base of 1 or less, or a length below 1.
    """

    dim: int
    base: float = 10_000.0
    original_length: int | None = None
    layout: Layout = "half"

    def __post_init__(self) -> None:
        is_integer = isinstance(self.dim, Integral) and not isinstance(self.dim, bool)
        if not is_integer or not 2 <= self.dim <= 65_536 or self.dim % 2:
            raise RotaryDimError(self.dim)
        object.__setattr__(self, "dim", int(self.dim))
        object.__setattr__(self, "base", check_number("base", self.base, minimum=1, exclusive=True))
        if self.original_length is not None:
            object.__setattr__(self, "original_length", check_length("original_length", self.original_length))
        if self.layout not in ("half", "interleaved"):
            raise InputError("layout", self.layout, "half, interleaved")

    @cached_property
    def inv_freq(self) -> NDArray[np.float64]:
        """The inverse frequencies theta_i = base^(-2i/dim), rad/token, [dim/2]."""
        inv_freq = self.inv_freq_with_base(self.base)
        inv_freq.flags.writeable = False  # cached
        return inv_freq

    @property
    def wavelengths(self) -> NDArray[np.float64]:
        """The number of tokens in which each pair of channels completes one rotation, [dim/2]."""
        return 2 * math.pi / self.inv_freq

    def rotations(self, length: float) -> NDArray[np.float64]:
        """Return how many rotations each pair of channels completes over `length` tokens, [dim/2]."""
        return length / self.wavelengths

    def inv_freq_with_base(self, base: float) -> NDArray[np.float64]:
        """Return the inverse frequencies for another base, rad/token, [dim/2]."""
        return np.power(float(base), -np.arange(0, self.dim, 2, dtype=np.float64) / self.dim)
