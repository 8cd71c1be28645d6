from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from ropewalk.errors import InputError, check_number
from ropewalk.frequencies import Frequencies
from ropewalk.rope import Rope
from ropewalk.scaling.base import Scaling


def ntk_base(rope: Rope, factor: float) -> float:
    """b s^(d/(d-2)): the base under which the slowest pair turns `factor` times slower (arXiv 2309.00071, eq. 16).

    Raises InputError for dim 2, which has no pair to keep.
    """
    if rope.dim < 4:
        raise InputError("dim", rope.dim, "at least 4 for NTK-aware scaling")
    return rope.base * math.pow(factor, rope.dim / (rope.dim - 2))


@dataclass(frozen=True)
class NTK(Scaling):
    """NTK-aware scaling: a larger base, so that slow pairs are slowed most (bloc97, 2023).

    `variant="fixed"` and `"mixed"` are the two of kexue.fm 9706, which vLLM calls `ntk`: pair i
    (from 1) is divided by exp(a i^c), a = ln s / (d/2)^c, with c = 1 (fixed) or `mixed_b` (mixed).
    """

    name = "ntk"
    aliases = ("ntk-aware",)
    formula = "b' = b s^(d/(d-2)); b'^(-2i/d)"
    source = "bloc97, 2023; arXiv 2309.00071 eq. 16"

    factor: float
    variant: Literal["aware", "fixed", "mixed"] = "aware"
    mixed_b: float = 0.625

    def __post_init__(self) -> None:
        super().__post_init__()
        check_number("ntk: factor", self.factor, minimum=1)
        check_number("ntk: mixed_b", self.mixed_b, minimum=0, exclusive=True)
        if self.variant not in ("aware", "fixed", "mixed"):
            raise InputError("ntk: variant", self.variant, "aware, fixed, mixed")

    def frequencies(self, rope: Rope, length: int | None = None) -> Frequencies:
        if self.variant == "aware":
            return Frequencies(rope.inv_freq_with_base(ntk_base(rope, self.factor)))
        power = 1.0 if self.variant == "fixed" else self.mixed_b
        pairs = rope.dim // 2
        slowed = math.log(self.factor) * (np.arange(1, pairs + 1) / pairs) ** power
        return Frequencies(rope.inv_freq * np.exp(-slowed))


@dataclass(frozen=True)
class DynamicNTK(Scaling):
    """NTK-aware scaling whose base grows with the text (emozilla, 2023; transformers' `dynamic`).

    With `alpha` (Hunyuan) the base is stretched by that fixed amount instead, at every length.
    """

    name = "dynamic-ntk"
    aliases = ("dynamic",)
    formula = "l <= L: theta_i; else b' = b (s l/L - (s-1))^(d/(d-2)); b'^(-2i/d)"
    source = "emozilla, 2023; transformers `dynamic`"

    factor: float = 2.0
    alpha: float | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        check_number("dynamic-ntk: factor", self.factor, minimum=1)
        if self.alpha is not None:
            check_number("dynamic-ntk: alpha", self.alpha, minimum=1)

    @property
    def is_dynamic(self) -> bool:
        return self.alpha is None

    def extension_factor(self, rope: Rope, length: int | None = None) -> float:
        return (
            1.0 if self.alpha is not None else super().extension_factor(rope, length)
        )  # alpha is not a ratio of lengths

    def frequencies(self, rope: Rope, length: int | None = None) -> Frequencies:
        if self.alpha is not None:
            return Frequencies(rope.inv_freq_with_base(ntk_base(rope, self.alpha)))
        length_ratio = max(1.0, self.length_ratio(rope, length))
        return Frequencies(rope.inv_freq_with_base(ntk_base(rope, self.factor * length_ratio - (self.factor - 1))))

    def to_rope_parameters(self, rope: Rope, length: int | None = None) -> dict[str, Any] | None:
        if self.alpha is not None or length is not None:
            return super().to_rope_parameters(rope, length)
        return {"rope_type": "dynamic", "factor": float(self.factor)}
