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


def correction_index(rope: Rope, length: int, rotations: float) -> float:
    """Return the (fractional) index of the pair that completes `rotations` over `length` tokens."""
    return rope.dim * math.log(length / (2 * math.pi * rotations)) / (2 * math.log(rope.base))


def rotations_at(rope: Rope, length: int, index: float) -> float:
    """Return the rotations over `length` tokens of a pair, by its (fractional) index; undoes `correction_index`."""
    return length / (2 * math.pi) * math.pow(rope.base, -2 * index / rope.dim)


def correction_range(
    rope: Rope, length: int, beta_fast: float, beta_slow: float, truncate: bool = True
) -> tuple[float, float]:
    """Return the indices of the pairs between which a ramp by index runs, as in YaRN's reference code.

    Args:
        rope: the unscaled embedding.
        length: the original length, in tokens.
        beta_fast, beta_slow: rotations over that length at which the ramp begins and ends.
        truncate: whether the first index is rounded down and the second one up.
    """
    low, high = correction_index(rope, length, beta_fast), correction_index(rope, length, beta_slow)
    if truncate:
        low, high = math.floor(low), math.ceil(high)
    return max(low, 0), min(high, rope.dim - 1)


@dataclass(frozen=True, kw_only=True, repr=False)
class ByParts(Scaling):
    """The ramp that all by-parts methods share; an abstract class.

    Args:
        beta_fast: pairs with at least this many rotations over the original length keep their frequency.
        beta_slow: the frequency of pairs with at most this many rotations is divided by the whole factor.
        ramp: how the pairs in between are blended. "index" is linear in the index of the pair, as in the reference
            code, transformers, vLLM and llama.cpp; "rotations" is linear in the rotations, as in the paper.
        truncate: whether the index ramp starts and ends at whole indices; gpt-oss sets it to False.
        critical: index of the first pair whose frequency is divided by the whole factor, counted from 0; replaces
            beta_slow. This is the real critical dimension of LongRoPE2 (arXiv 2502.20082, sec. 4.3: YaRN-rcd), found
            by a search: 25 for Phi-3-mini and 30 for Llama 3 8B, where beta_slow = 1 gives the theoretical ones of
            eq. 7, 31 and 35. The paper plots YaRN-rcd and gives no equation; the start of the ramp stays at beta_fast.
    """

    # Numbers below 1e-9 would overflow the bounds of the ramp.
    beta_fast: float = field(default=32.0, metadata=at_least(1e-9))
    beta_slow: float = field(default=1.0, metadata=at_least(1e-9))
    ramp: Literal["index", "rotations"] = "index"
    truncate: bool = True
    critical: int | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        # Kimi K2 publishes both betas as 1. By index that is a ramp between two neighboring pairs, by rotations 0/0.
        if self.beta_fast < self.beta_slow or (self.beta_fast == self.beta_slow and self.ramp == "rotations"):
            raise InputError(f"{self.name}: beta_fast", self.beta_fast, f"above beta_slow ({self.beta_slow:g})")
        if self.ramp not in ("index", "rotations"):
            raise InputError(f"{self.name}: ramp", self.ramp, "index, rotations")
        if not isinstance(self.truncate, bool):
            raise InputError(f"{self.name}: truncate", self.truncate, "true, false")
        if self.critical is not None and (isinstance(self.critical, bool) or not isinstance(self.critical, int)):
            raise InputError(f"{self.name}: critical", self.critical, "the index of a pair, such as 25")

    def interpolate_by_parts(self, rope: Rope, factor: float) -> NDArray[np.float64]:
        """Return the inverse frequencies of NTK-by-parts with that factor, rad/token, [dim/2]."""
        return blend_frequencies(rope.inv_freq, factor, self._kept_fraction(rope))

    def resolve_beta_slow(self, rope: Rope) -> float:
        """Return the rotations at which the ramp ends: beta_slow, or those that make it end at the pair `critical`.

        Raises InputError for a pair that the rope does not have or that completes more than beta_fast rotations.
        """
        if self.critical is None:
            return self.beta_slow
        length = self.resolve_original_length(rope)
        start, last = max(correction_index(rope, length, self.beta_fast), 0.0), rope.dim // 2 - 1
        if not start < self.critical <= last:
            allowed = f"a pair from {math.floor(start) + 1} to {last}, slower than beta_fast ({self.beta_fast:g})"
            raise InputError(f"{self.name}: critical", self.critical, allowed)
        index: float = self.critical
        if self.ramp == "index" and self.truncate:
            # The index will be rounded up. Stay away from whole numbers, which rounding errors would step over.
            index -= min(1.0, self.critical - start) / 2
        return rotations_at(rope, length, index)

    def _kept_fraction(self, rope: Rope) -> NDArray[np.float64]:
        """Return g, the fraction of each pair's frequency that stays unscaled, [dim/2] (arXiv 2309.00071, eq. 21)."""
        length, beta_slow = self.resolve_original_length(rope), self.resolve_beta_slow(rope)
        if self.ramp == "rotations":
            ramp = (rope.rotations(length) - beta_slow) / (self.beta_fast - beta_slow)
        else:
            low, high = correction_range(rope, length, self.beta_fast, beta_slow, self.truncate)
            if low == high:
                high += 0.001  # makes the ramp a step and not 0/0, as in the reference code
            ramp = 1 - (np.arange(rope.dim // 2, dtype=np.float64) - low) / (high - low)
        return ramp.clip(0.0, 1.0)


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
