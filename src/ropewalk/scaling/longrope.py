from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ropewalk.errors import InputError, check_number
from ropewalk.frequencies import Frequencies
from ropewalk.rope import Rope
from ropewalk.scaling.base import Scaling, above, at_least

MAX_DIVISOR = 1e12  # the largest number that an option accepts; stands for a pair that does not rotate


def longrope_attention_factor(factor: float, original_length: float) -> float:
    """Return sqrt(1 + ln s / ln L) (LongRoPE, arXiv 2402.13753, as in the code of Phi-3)."""
    return math.sqrt(1 + math.log(factor) / math.log(original_length))


@dataclass(frozen=True, repr=False)
class LongRoPE(Scaling):
    """Divide the frequency of each pair by its own number, from a list (LongRoPE, arXiv 2402.13753; Phi-3).

    Args:
        short_factor: the divisors lambda_i for texts up to the original length L, one above 0 for each of dim/2 pairs.
        long_factor: the same for longer texts. If the two lists are equal, the scaling is static.
        factor: target length over original length, s; determines the attention factor sqrt(1 + ln s / ln L).
        attention_factor: replaces that one. At least one of the two is required.
    """

    name = "longrope"
    aliases = ("su",)
    formula = "theta_i / lambda_i; attention factor sqrt(1 + ln s / ln L)"
    source = "LongRoPE, arXiv 2402.13753; Phi-3"

    short_factor: tuple[float, ...]
    long_factor: tuple[float, ...]
    factor: float | None = field(default=None, metadata=at_least(1))
    attention_factor: float | None = field(default=None, metadata=above(0))

    def __post_init__(self) -> None:
        super().__post_init__()
        for option in ("short_factor", "long_factor"):
            value = getattr(self, option)
            if not isinstance(value, list | tuple) or not value:
                raise InputError(f"longrope: {option}", value, "a list of numbers, one for each pair")
            divisors = tuple(
                check_number(f"longrope: {option}[{i}]", divisor, minimum=0, exclusive=True)
                for i, divisor in enumerate(value)
            )
            object.__setattr__(self, option, divisors)
        if len(self.short_factor) != len(self.long_factor):
            lengths = f"{len(self.short_factor)} and {len(self.long_factor)} numbers"
            raise InputError("longrope: short_factor and long_factor", lengths, "lists of equal length")
        if self.factor is None and self.attention_factor is None:
            raise InputError("longrope: factor", None, "a number, for factor or attention_factor")

    @classmethod
    def from_frequencies(
        cls, rope: Rope, frequencies: Frequencies, factor: float, original_length: int | None
    ) -> LongRoPE:
        """Return the static scaling, with two equal lists, that has these frequencies.

        The divisors end at `MAX_DIVISOR`, which also stands for a frequency of 0: with it, a pair rotates 1e-12 times
        as fast as unscaled, which float32 cannot resolve within millions of tokens.
        """
        with np.errstate(divide="ignore"):
            divisors = tuple(np.minimum(rope.inv_freq / frequencies.inv_freq, MAX_DIVISOR).tolist())
        return cls(divisors, divisors, factor, frequencies.attention_factor, original_length=original_length)

    @property
    def is_dynamic(self) -> bool:
        return self.short_factor != self.long_factor

    def frequencies(self, rope: Rope, length: int | None = None) -> Frequencies:
        pairs = rope.dim // 2
        if len(self.short_factor) != pairs:
            raise InputError(
                "longrope: short_factor", f"{len(self.short_factor)} numbers", f"{pairs} numbers, one for each pair"
            )
        is_long = self.is_dynamic and self.length_ratio(rope, length) > 1
        divisors = self.long_factor if is_long else self.short_factor
        return Frequencies(rope.inv_freq / np.array(divisors), self._attention_factor(rope))

    def _attention_factor(self, rope: Rope) -> float:
        if self.attention_factor is not None:
            return float(self.attention_factor)
        assert self.factor is not None  # checked in __post_init__
        original = self.resolve_original_length(rope)
        if original < 2:
            raise InputError("original_length", original, "at least 2 tokens, which longrope's factor needs")
        return longrope_attention_factor(self.factor, original)

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
