from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from ropewalk.errors import InputError
from ropewalk.frequencies import Frequencies
from ropewalk.rope import Rope
from ropewalk.scaling.base import Scaling, at_least


def blend_frequencies(
    inv_freq: NDArray[np.float64], factor: float, kept_fraction: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Return (1 - g) theta_i / s + g theta_i, [dim/2] (arXiv 2309.00071, eq. 20).

    Args:
        inv_freq: the unscaled inverse frequencies theta_i, rad/token, [dim/2].
        factor: s.
        kept_fraction: g, 0 (frequency divided by s) to 1 (frequency unchanged) for each pair, [dim/2].
    """
    return inv_freq * ((1 - kept_fraction) / factor + kept_fraction)


@dataclass(frozen=True, kw_only=True, repr=False)
class ByParts(Scaling):
    """The ramp that all by-parts methods share; an abstract class.

    Args:
        beta_fast: pairs with at least this many rotations over the original length keep their frequency.
        beta_slow: the frequency of pairs with at most this many rotations is divided by the whole factor.
        ramp: how the pairs in between are blended. "index" is linear in the index of the pair, as in the reference
            code, transformers, vLLM and llama.cpp; "rotations" is linear in the rotations, as in the paper.
        truncate: whether the index ramp starts and ends at whole indices; gpt-oss sets it to False.
    """

    # Numbers below 1e-9 would overflow the bounds of the ramp.
    beta_fast: float = field(default=32.0, metadata=at_least(1e-9))
    beta_slow: float = field(default=1.0, metadata=at_least(1e-9))
    ramp: Literal["index", "rotations"] = "index"
    truncate: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        # Kimi K2 publishes both betas as 1. By index that is a ramp between two neighboring pairs, by rotations 0/0.
        if self.beta_fast < self.beta_slow or (self.beta_fast == self.beta_slow and self.ramp == "rotations"):
            raise InputError(f"{self.name}: beta_fast", self.beta_fast, f"above beta_slow ({self.beta_slow:g})")
        if self.ramp not in ("index", "rotations"):
            raise InputError(f"{self.name}: ramp", self.ramp, "index, rotations")
        if not isinstance(self.truncate, bool):
            raise InputError(f"{self.name}: truncate", self.truncate, "true, false")

    def interpolate_by_parts(self, rope: Rope, factor: float) -> NDArray[np.float64]:
        """Return the inverse frequencies of NTK-by-parts with that factor, rad/token, [dim/2]."""
        return blend_frequencies(rope.inv_freq, factor, self._kept_fraction(rope))

    def _kept_fraction(self, rope: Rope) -> NDArray[np.float64]:
        """Return g, the fraction of each pair's frequency that stays unscaled, [dim/2] (arXiv 2309.00071, eq. 21)."""
        if self.ramp == "rotations":
            rotations = rope.rotations(self.resolve_original_length(rope))
            ramp = (rotations - self.beta_slow) / (self.beta_fast - self.beta_slow)
        else:
            ramp = self._index_ramp(rope)
        return ramp.clip(0.0, 1.0)

    def _index_ramp(self, rope: Rope) -> NDArray[np.float64]:
        """Return the ramp that is linear in the index of the pair and falls from 1 to 0; not yet clipped."""
        low, high = self._correction_index(rope, self.beta_fast), self._correction_index(rope, self.beta_slow)
        if self.truncate:
            low, high = math.floor(low), math.ceil(high)
        low, high = max(low, 0), min(high, rope.dim - 1)
        if low == high:
            high += 0.001  # makes the ramp a step and not 0/0, as in the reference code
        index = np.arange(rope.dim // 2, dtype=np.float64)
        return 1 - (index - low) / (high - low)

    def _correction_index(self, rope: Rope, rotations: float) -> float:
        """Return the (fractional) index of the pair that completes `rotations` over the original length."""
        length = self.resolve_original_length(rope)
        return rope.dim * math.log(length / (2 * math.pi * rotations)) / (2 * math.log(rope.base))


@dataclass(frozen=True, repr=False)
class NTKByParts(ByParts):
    """NTK-by-parts: keep fast pairs, interpolate slow ones, blend those in between (arXiv 2309.00071, eq. 20-21).

    Args:
        factor: target length over original length, s.
    """

    name = "ntk-by-parts"
    aliases = ("by-parts",)
    formula = "(1-g) theta_i/s + g theta_i, g = clamp((r_i - alpha)/(beta - alpha), 0, 1)"
    source = "arXiv 2309.00071 eq. 20-21"

    factor: float = field(metadata=at_least(1))

    def frequencies(self, rope: Rope, length: int | None = None) -> Frequencies:
        return Frequencies(self.interpolate_by_parts(rope, self.factor))


@dataclass(frozen=True, repr=False)
class DynamicNTKByParts(ByParts):
    """NTK-by-parts with a factor that follows the text, s = max(1, l/L) (arXiv 2309.00071, sec. 3.3)."""

    name = "dynamic-ntk-by-parts"
    aliases = ("dynamic-by-parts",)
    formula = "NTK-by-parts with s = max(1, l/L)"
    source = "arXiv 2309.00071 sec. 3.3"
    is_dynamic = True

    def frequencies(self, rope: Rope, length: int | None = None) -> Frequencies:
        return Frequencies(self.interpolate_by_parts(rope, max(1.0, self.length_ratio(rope, length))))
