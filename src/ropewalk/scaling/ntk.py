from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np

from ropewalk.errors import InputError
from ropewalk.frequencies import Frequencies
from ropewalk.rope import Rope
from ropewalk.scaling.base import Scaling, above, at_least


def compute_ntk_base(rope: Rope, factor: float) -> float:
    """Return the base b s^(d/(d-2)), which divides the frequency of the slowest pair by s (arXiv 2309.00071, eq. 16).

    Args:
        rope: the unscaled embedding.
        factor: s.

    Raises InputError for a rope of 2 dimensions: its only pair has frequency 1 with every base.
    """
    if rope.dim < 4:
        raise InputError("dim", rope.dim, "at least 4 for NTK-aware scaling")
    return rope.base * math.pow(factor, rope.dim / (rope.dim - 2))


@dataclass(frozen=True, repr=False)
class NTK(Scaling):
    """NTK-aware scaling: use a larger base, which slows the slowest pairs most (bloc97, 2023).

    Args:
        factor: target length over original length, s.
        variant: "aware" is the original. "fixed" and "mixed" are the two of kexue.fm 9706, which vLLM calls `ntk`:
            pair i (from 1) is divided by exp(a i^c), a = ln s / (d/2)^c, with c = 1 (fixed) or c = `mixed_b` (mixed).
        mixed_b: the exponent c of the "mixed" variant.
    """

    name = "ntk"
    aliases = ("ntk-aware",)
    formula = "b' = b s^(d/(d-2)); b'^(-2i/d)"
    source = "bloc97, 2023; arXiv 2309.00071 eq. 16"

    factor: float = field(metadata=at_least(1))
    variant: Literal["aware", "fixed", "mixed"] = "aware"
    mixed_b: float = field(default=0.625, metadata=above(0))

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.variant not in ("aware", "fixed", "mixed"):
            raise InputError("ntk: variant", self.variant, "aware, fixed, mixed")

    def frequencies(self, rope: Rope, length: int | None = None) -> Frequencies:
        if self.variant == "aware":
            return Frequencies(rope.inv_freq_with_base(compute_ntk_base(rope, self.factor)))
        exponent = 1.0 if self.variant == "fixed" else self.mixed_b
        pairs = rope.dim // 2
        log_divisors = math.log(self.factor) * (np.arange(1, pairs + 1) / pairs) ** exponent
        return Frequencies(rope.inv_freq * np.exp(-log_divisors))


@dataclass(frozen=True, repr=False)
class DynamicNTK(Scaling):
    """NTK-aware scaling with a base that grows with the text (emozilla, 2023; transformers' `dynamic`).

    Args:
        factor: s in the formula below; larger values raise the base faster.
        alpha: multiplies the base as a fixed NTK factor at every length instead (Hunyuan), which is static.
    """

    name = "dynamic-ntk"
    aliases = ("dynamic",)
    formula = "l <= L: theta_i; else b' = b (s l/L - (s-1))^(d/(d-2)); b'^(-2i/d)"
    source = "emozilla, 2023; transformers `dynamic`"

    factor: float = field(default=2.0, metadata=at_least(1))
    alpha: float | None = field(default=None, metadata=at_least(1))

    @property
    def is_dynamic(self) -> bool:
        return self.alpha is None

    def extension_factor(self, rope: Rope, length: int | None = None) -> float:
        if self.alpha is not None:
            return 1.0  # alpha is not a ratio of lengths
        return super().extension_factor(rope, length)

    def frequencies(self, rope: Rope, length: int | None = None) -> Frequencies:
        ntk_factor = self.alpha
        if ntk_factor is None:
            length_ratio = max(1.0, self.length_ratio(rope, length))
            ntk_factor = self.factor * length_ratio - (self.factor - 1)
        return Frequencies(rope.inv_freq_with_base(compute_ntk_base(rope, ntk_factor)))

    def to_rope_parameters(self, rope: Rope, length: int | None = None) -> dict[str, Any] | None:
        if self.alpha is not None or length is not None:
            return super().to_rope_parameters(rope, length)
        return {"rope_type": "dynamic", "factor": float(self.factor)}
