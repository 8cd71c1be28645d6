from __future__ import annotations

import math
from dataclasses import dataclass

from ropewalk.errors import InputError, check_number
from ropewalk.frequencies import Frequencies
from ropewalk.rope import Rope
from ropewalk.scaling.base import Scaling


@dataclass(frozen=True)
class CriticalBase(Scaling):
    """The base that keeps the critical dimension where training put it (arXiv 2310.05209; Gradient; KoboldCpp).

    Pairs slower than one turn over L never saw their whole circle; the new base gives, at length l, the
    same pair one turn. Without `factor` l is the length of the text; with it, l = s L, at every length.
    """

    name = "critical-base"
    formula = "b' = b^(ln(l/2 pi) / ln(L/2 pi)); b'^(-2i/d)"
    source = "arXiv 2310.05209; Gradient; KoboldCpp"

    factor: float | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.factor is not None:
            check_number("critical-base: factor", self.factor, minimum=1)

    @property
    def is_dynamic(self) -> bool:
        return self.factor is None

    def frequencies(self, rope: Rope, length: int | None = None) -> Frequencies:
        original = self.resolve_original_length(rope)
        if original < 7:
            raise InputError("original_length", original, "more than 2 pi tokens, which critical-base needs")
        length_ratio = self.factor if self.factor is not None else max(1.0, self.length_ratio(rope, length))
        power = math.log(length_ratio * original / (2 * math.pi)) / math.log(original / (2 * math.pi))
        return Frequencies(rope.inv_freq**power)
