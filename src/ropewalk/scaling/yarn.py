from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from ropewalk.errors import check_number
from ropewalk.frequencies import Frequencies
from ropewalk.rope import Rope
from ropewalk.scaling.by_parts import ByParts


def yarn_mscale(factor: float, coefficient: float = 1.0) -> float:
    """m(s, c) = 0.1 c ln s + 1 (arXiv 2309.00071, eq. 22); 1 for s <= 1."""
    return 0.1 * coefficient * math.log(factor) + 1.0 if factor > 1 else 1.0


@dataclass(frozen=True)
class YaRN(ByParts):
    """NTK-by-parts with a warmer attention (arXiv 2309.00071, eq. 20-22), DeepSeek's form included.

    Args:
        factor: target length over original length.
        attention_factor: instead of the one that follows from the factor.
        mscale, mscale_all_dim: DeepSeek's pair (arXiv 2405.04434): together they make the attention factor
            m(s, mscale) / m(s, mscale_all_dim), and the softmax factor m(s, mscale_all_dim)^2. As in
            transformers, one of them alone leaves the attention factor as it was.
    """

    name = "yarn"
    aliases = ("deepseek-yarn",)
    formula = "NTK-by-parts, alpha 1, beta 32; attention factor 0.1 ln s + 1"
    source = "YaRN, arXiv 2309.00071 eq. 20-22; mscale: DeepSeek-V2, arXiv 2405.04434"

    factor: float
    attention_factor: float | None = None
    mscale: float | None = None
    mscale_all_dim: float | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        check_number("yarn: factor", self.factor, minimum=1)
        if self.attention_factor is not None:
            check_number("yarn: attention_factor", self.attention_factor, minimum=0, exclusive=True)
        for option in ("mscale", "mscale_all_dim"):
            if getattr(self, option) is not None:
                check_number(f"yarn: {option}", getattr(self, option), minimum=0)

    def frequencies(self, rope: Rope, length: int | None = None) -> Frequencies:
        softmax_factor = yarn_mscale(self.factor, self.mscale_all_dim or 0.0) ** 2
        return Frequencies(self.blend(rope, self.factor), self._attention_factor(), softmax_factor)

    def _attention_factor(self) -> float:
        if self.attention_factor is not None:
            return float(self.attention_factor)
        if self.mscale and self.mscale_all_dim:
            return yarn_mscale(self.factor, self.mscale) / yarn_mscale(self.factor, self.mscale_all_dim)
        return yarn_mscale(self.factor)

    def to_rope_parameters(self, rope: Rope, length: int | None = None) -> dict[str, Any] | None:
        if self.ramp != "index":
            return super().to_rope_parameters(rope, length)
        options = {
            "factor": float(self.factor),
            "original_max_position_embeddings": self.resolve_original_length(rope),
            "beta_fast": float(self.beta_fast),
            "beta_slow": float(self.beta_slow),
            "truncate": self.truncate,
            "attention_factor": None if self.attention_factor is None else float(self.attention_factor),
            "mscale": self.mscale,
            "mscale_all_dim": self.mscale_all_dim,
        }
        return {"rope_type": "yarn", **{key: value for key, value in options.items() if value is not None}}


@dataclass(frozen=True)
class DynamicYaRN(ByParts):
    """YaRN whose factor follows the text, s = max(1, l/L) (arXiv 2309.00071, sec. 3.3)."""

    name = "dynamic-yarn"
    formula = "YaRN with s = max(1, l/L)"
    source = "arXiv 2309.00071 sec. 3.3"

    @property
    def is_dynamic(self) -> bool:
        return True

    def frequencies(self, rope: Rope, length: int | None = None) -> Frequencies:
        factor = max(1.0, self.length_ratio(rope, length))
        return Frequencies(self.blend(rope, factor), yarn_mscale(factor))
