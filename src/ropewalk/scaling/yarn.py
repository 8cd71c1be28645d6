from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

from ropewalk.frequencies import Frequencies
from ropewalk.rope import Rope
from ropewalk.scaling.base import above, at_least
from ropewalk.scaling.by_parts import ByParts


def yarn_mscale(factor: float, coefficient: float = 1.0) -> float:
    """Return m(s, c) = 0.1 c ln s + 1, or 1 for s <= 1 (arXiv 2309.00071, eq. 22).

    Args:
        factor: s.
        coefficient: c; 1 for YaRN's attention factor, mscale or mscale_all_dim for DeepSeek's.
    """
    return 0.1 * coefficient * math.log(factor) + 1.0 if factor > 1 else 1.0


def yarn_mscale_ratio(factor: float, mscale: float, mscale_all_dim: float) -> float:
    """Return DeepSeek's attention factor m(s, mscale) / m(s, mscale_all_dim) (arXiv 2405.04434)."""
    return yarn_mscale(factor, mscale) / yarn_mscale(factor, mscale_all_dim)


@dataclass(frozen=True, repr=False)
class YaRN(ByParts):
    """NTK-by-parts with an attention factor above 1 (arXiv 2309.00071, eq. 20-22), including DeepSeek's variant.

    Args:
        factor: target length over original length, s.
        attention_factor: replaces the default of 0.1 ln s + 1.
        mscale, mscale_all_dim: DeepSeek's variant (arXiv 2405.04434). With both, the attention factor is
            m(s, mscale) / m(s, mscale_all_dim); with one of them it stays the default, as in transformers. The softmax
            factor is m(s, mscale_all_dim)^2.
    """

    name = "yarn"
    aliases = ("deepseek-yarn",)
    formula = "NTK-by-parts, alpha 1, beta 32; attention factor 0.1 ln s + 1"
    source = "YaRN, arXiv 2309.00071 eq. 20-22; mscale: DeepSeek-V2, arXiv 2405.04434"

    factor: float = field(metadata=at_least(1))
    attention_factor: float | None = field(default=None, metadata=above(0))
    mscale: float | None = field(default=None, metadata=at_least(0))
    mscale_all_dim: float | None = field(default=None, metadata=at_least(0))

    def frequencies(self, rope: Rope, length: int | None = None) -> Frequencies:
        softmax_factor = yarn_mscale(self.factor, self.mscale_all_dim or 0.0) ** 2
        return Frequencies(self.interpolate_by_parts(rope, self.factor), self._attention_factor(), softmax_factor)

    def _attention_factor(self) -> float:
        if self.attention_factor is not None:
            return float(self.attention_factor)
        if self.mscale and self.mscale_all_dim:
            return yarn_mscale_ratio(self.factor, self.mscale, self.mscale_all_dim)
        return yarn_mscale(self.factor)

    def to_rope_parameters(self, rope: Rope, length: int | None = None) -> dict[str, Any] | None:
        if self.ramp != "index":
            return super().to_rope_parameters(rope, length)
        options = {
            "factor": float(self.factor),
            "original_max_position_embeddings": self.resolve_original_length(rope),
            "beta_fast": float(self.beta_fast),
            "beta_slow": float(self.resolve_beta_slow(rope)),
            "truncate": self.truncate,
            "attention_factor": None if self.attention_factor is None else float(self.attention_factor),
            "mscale": self.mscale,
            "mscale_all_dim": self.mscale_all_dim,
        }
        return {"rope_type": "yarn", **{key: value for key, value in options.items() if value is not None}}


@dataclass(frozen=True, repr=False)
class DynamicYaRN(ByParts):
    """YaRN with a factor that follows the text, s = max(1, l/L) (arXiv 2309.00071, sec. 3.3)."""

    name = "dynamic-yarn"
    aliases = ("ropewalk-dynamic-yarn",)  # the rope type of the plugin for vLLM
    formula = "YaRN with s = max(1, l/L)"
    source = "arXiv 2309.00071 sec. 3.3"
    is_dynamic = True

    def frequencies(self, rope: Rope, length: int | None = None) -> Frequencies:
        factor = max(1.0, self.length_ratio(rope, length))
        return Frequencies(self.interpolate_by_parts(rope, factor), yarn_mscale(factor))
