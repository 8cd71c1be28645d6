from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from ropewalk.errors import InputError, check_number
from ropewalk.frequencies import Frequencies
from ropewalk.rope import Rope
from ropewalk.scaling.base import Scaling


@dataclass(frozen=True)
class LongRoPE(Scaling):
    """A divisor of its own for each pair: a short list up to L, a long list past it (arXiv 2402.13753; Phi-3).

    Args:
        short_factor, long_factor: lambda_i, one number above 0 for each of the dim/2 pairs.
        factor: target length over original length; it sets the attention factor sqrt(1 + ln s / ln L).
        attention_factor: instead of that one. One of the two is needed.
    """

    name = "longrope"
    aliases = ("su",)
    formula = "theta_i / lambda_i; attention factor sqrt(1 + ln s / ln L)"
    source = "LongRoPE, arXiv 2402.13753; Phi-3"

    short_factor: tuple[float, ...]
    long_factor: tuple[float, ...]
    factor: float | None = None
    attention_factor: float | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        for option in ("short_factor", "long_factor"):
            value = getattr(self, option)
            if not isinstance(value, list | tuple) or not value:
                raise InputError(f"longrope: {option}", value, "a list of numbers, one for each pair")
            numbers = tuple(
                check_number(f"longrope: {option}[{i}]", x, minimum=0, exclusive=True) for i, x in enumerate(value)
            )
            object.__setattr__(self, option, numbers)
        if len(self.short_factor) != len(self.long_factor):
            found = f"{len(self.short_factor)} and {len(self.long_factor)}"
            raise InputError("longrope: short_factor and long_factor", found, "lists of equal length")
        if self.factor is not None:
            check_number("longrope: factor", self.factor, minimum=1)
        if self.attention_factor is not None:
            check_number("longrope: attention_factor", self.attention_factor, minimum=0, exclusive=True)
        if self.factor is None and self.attention_factor is None:
            raise InputError("longrope: factor", None, "factor or attention_factor, one of the two")

    @property
    def is_dynamic(self) -> bool:
        return self.short_factor != self.long_factor

    def frequencies(self, rope: Rope, length: int | None = None) -> Frequencies:
        if len(self.short_factor) != rope.dim // 2:
            raise InputError(
                "longrope: short_factor", f"{len(self.short_factor)} numbers", f"{rope.dim // 2}, one a pair"
            )
        past = self.is_dynamic and self.length_ratio(rope, length) > 1
        divisors = self.long_factor if past else self.short_factor
        return Frequencies(rope.inv_freq / np.array(divisors), self._attention_factor(rope))

    def _attention_factor(self, rope: Rope) -> float:
        if self.attention_factor is not None:
            return float(self.attention_factor)
        assert self.factor is not None  # the constructor saw to it
        original = self.resolve_original_length(rope)
        if original < 2:
            raise InputError("original_length", original, "at least 2 tokens, which longrope's factor needs")
        return math.sqrt(1 + math.log(self.factor) / math.log(original))

    def extension_factor(self, rope: Rope, length: int | None = None) -> float:
        return float(self.factor or 1.0)

    def to_rope_parameters(self, rope: Rope, length: int | None = None) -> dict[str, Any] | None:
        if self.is_dynamic and length is not None:
            return super().to_rope_parameters(rope, length)
        return {
            "rope_type": "longrope",
            "short_factor": list(self.short_factor),
            "long_factor": list(self.long_factor),
            "factor": float(self.factor or 1.0),
            "attention_factor": self._attention_factor(rope),
            "original_max_position_embeddings": self.resolve_original_length(rope),
        }
