"""An unscaled rotary embedding: what the model was trained with.

numpy and the standard library alone.
"""

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


@dataclass(frozen=True)
class Rope:
    """The rotary embedding of one head (RoFormer, arXiv 2104.09864, eq. 15).

    Args:
        dim: rotary dimensions of one head, an even count.
        base: RoPE theta.
        original_length: tokens the model was trained on; needed by most scalings.
        layout: pair i is (x_i, x_{i + dim/2}) for "half", (x_{2i}, x_{2i+1}) for "interleaved".

    Raises InputError for an odd or non-positive dim, a base of 1 or less, a length below 1.
    """

    dim: int
    base: float = 10_000.0
    original_length: int | None = None
    layout: Layout = "half"

    def __post_init__(self) -> None:
        whole = isinstance(self.dim, Integral) and not isinstance(self.dim, bool)
        if not whole or not 2 <= self.dim <= 65_536 or self.dim % 2:
            raise InputError("dim", self.dim, "an even number of rotary dimensions, from 2 to 65,536")
        object.__setattr__(self, "dim", int(self.dim))
        object.__setattr__(self, "base", check_number("base", self.base, minimum=1, exclusive=True))
        if self.original_length is not None:
            object.__setattr__(self, "original_length", check_length("original_length", self.original_length))
        if self.layout not in ("half", "interleaved"):
            raise InputError("layout", self.layout, "half, interleaved")

    @cached_property
    def inv_freq(self) -> NDArray[np.float64]:
        """theta_i = base^(-2i/dim), rad/token, [dim/2] float64."""
        return self.inv_freq_with_base(self.base)

    @property
    def wavelengths(self) -> NDArray[np.float64]:
        """Tokens that one turn of each pair takes, [dim/2] float64."""
        return 2 * math.pi / self.inv_freq

    def rotations(self, length: float) -> NDArray[np.float64]:
        """Turns of each pair over `length` tokens, [dim/2] float64."""
        return length / self.wavelengths

    def inv_freq_with_base(self, base: float) -> NDArray[np.float64]:
        """The inverse frequencies that another base gives, rad/token, [dim/2] float64."""
        return np.power(float(base), -np.arange(0, self.dim, 2, dtype=np.float64) / self.dim)
