from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from ropewalk.errors import InputError, check_number
from ropewalk.frequencies import Frequencies
from ropewalk.rope import Rope
from ropewalk.scaling.base import Scaling

Ramp = Literal["index", "rotations"]


@dataclass(frozen=True, kw_only=True)
class ByParts(Scaling):
    """The ramp that every by-parts method shares; not a method itself.

    Args:
        beta_fast: pairs with at least this many rotations over the original length keep their frequency.
        beta_slow: pairs with at most this many rotations are interpolated in full.
        ramp: between the two, linear in the pair index ("index": the reference code, transformers,
            vLLM, llama.cpp) or in the rotations ("rotations": the paper).
        truncate: whether the index ramp starts and ends on whole indices (gpt-oss: not).
    """

    beta_fast: float = field(default=32.0)
    beta_slow: float = field(default=1.0)
    ramp: Ramp = field(default="index")
    truncate: bool = field(default=True)

    def __post_init__(self) -> None:
        super().__post_init__()
        for option in ("beta_slow", "beta_fast"):  # less than this overflows the ramp's bounds
            check_number(f"{self.name}: {option}", getattr(self, option), minimum=1e-9)
        # Kimi K2 publishes both as 1: by index that is a ramp between two neighbouring pairs, by rotations 0/0.
        if self.beta_fast < self.beta_slow or (self.beta_fast == self.beta_slow and self.ramp == "rotations"):
            raise InputError(f"{self.name}: beta_fast", self.beta_fast, f"above beta_slow ({self.beta_slow:g})")
        if self.ramp not in ("index", "rotations"):
            raise InputError(f"{self.name}: ramp", self.ramp, "index, rotations")
        if not isinstance(self.truncate, bool):
            raise InputError(f"{self.name}: truncate", self.truncate, "true, false")

    def blend(self, rope: Rope, factor: float) -> NDArray[np.float64]:
        """(1 - g) theta_i / s + g theta_i, [dim/2] (arXiv 2309.00071, eq. 20-21)."""
        kept = self.kept(rope)
        return rope.inv_freq * ((1 - kept) / factor + kept)

    def kept(self, rope: Rope) -> NDArray[np.float64]:
        """g: how much of each pair's frequency is kept, 0 (interpolated) to 1 (untouched), [dim/2]."""
        length = self.resolve_original_length(rope)
        if self.ramp == "rotations":
            turned = rope.rotations(length)
            return self._clamped((turned - self.beta_slow) / (self.beta_fast - self.beta_slow))
        low, high = (
            rope.dim * math.log(length / (2 * math.pi * beta)) / (2 * math.log(rope.base))
            for beta in (self.beta_fast, self.beta_slow)
        )
        if self.truncate:
            low, high = math.floor(low), math.ceil(high)
        low, high = max(low, 0), min(high, rope.dim - 1)
        if low == high:
            high += 0.001  # as the reference code does, so that the ramp is a step and not 0/0
        return 1 - self._clamped((np.arange(rope.dim // 2) - low) / (high - low))

    @staticmethod
    def _clamped(ramp: NDArray[Any]) -> NDArray[np.float64]:
        clamped: NDArray[np.float64] = np.minimum(np.maximum(ramp, 0.0), 1.0)
        return clamped


@dataclass(frozen=True)
class NTKByParts(ByParts):
    """NTK-by-parts: fast pairs kept, slow pairs interpolated, a ramp between (arXiv 2309.00071, eq. 20-21)."""

    name = "ntk-by-parts"
    aliases = ("by-parts",)
    formula = "(1-g) theta_i/s + g theta_i, g = clamp((r_i - alpha)/(beta - alpha), 0, 1)"
    source = "arXiv 2309.00071 eq. 20-21"

    factor: float

    def __post_init__(self) -> None:
        super().__post_init__()
        check_number("ntk-by-parts: factor", self.factor, minimum=1)

    def frequencies(self, rope: Rope, length: int | None = None) -> Frequencies:
        return Frequencies(self.blend(rope, self.factor))


@dataclass(frozen=True)
class DynamicNTKByParts(ByParts):
    """NTK-by-parts whose factor follows the text, s = max(1, l/L) (arXiv 2309.00071, sec. 3.3)."""

    name = "dynamic-ntk-by-parts"
    aliases = ("dynamic-by-parts",)
    formula = "NTK-by-parts with s = max(1, l/L)"
    source = "arXiv 2309.00071 sec. 3.3"

    @property
    def is_dynamic(self) -> bool:
        return True

    def frequencies(self, rope: Rope, length: int | None = None) -> Frequencies:
        return Frequencies(self.blend(rope, max(1.0, self.length_ratio(rope, length))))
