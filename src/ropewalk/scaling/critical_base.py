from __future__ import annotations

import math
from dataclasses import dataclass, field

from ropewalk.errors import InputError
from ropewalk.frequencies import Frequencies
from ropewalk.rope import Rope
from ropewalk.scaling.base import Scaling, at_least


@dataclass(frozen=True, repr=False)
class CriticalBase(Scaling):
    """Raise the base so that the critical dimension stays where it was in training (arXiv 2310.05209).

    The critical dimension is the pair that completes exactly one rotation over the original length L. Slower pairs
    never completed a rotation in training. With the new base, the same pair completes one rotation over the longer
    text. Gradient and KoboldCpp use this method.

    Args:
        factor: target length over original length. None: follow the length of the text, which is dynamic.
    """

    name = "critical-base"
    formula = "b' = b^(ln(l/2 pi) / ln(L/2 pi)); b'^(-2i/d)"
    source = "arXiv 2310.05209; Gradient; KoboldCpp"

    factor: float | None = field(default=None, metadata=at_least(1))

    @property
    def is_dynamic(self) -> bool:
        return self.factor is None

    def frequencies(self, rope: Rope, length: int | None = None) -> Frequencies:
        original = self.resolve_original_length(rope)
        if original < 7:
            raise InputError("original_length", original, "more than 2 pi tokens, which critical-base needs")
        factor = self.factor if self.factor is not None else max(1.0, self.length_ratio(rope, length))
        exponent = math.log(factor * original / (2 * math.pi)) / math.log(original / (2 * math.pi))
        return Frequencies(rope.inv_freq**exponent)
