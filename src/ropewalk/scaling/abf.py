from __future__ import annotations

from dataclasses import dataclass, field

from ropewalk.frequencies import Frequencies
from ropewalk.rope import Rope
from ropewalk.scaling.base import Scaling, above


@dataclass(frozen=True, repr=False)
class ABF(Scaling):
    """Adjusted base frequency: use another base (arXiv 2309.16039, sec. 2.1)."""

    name = "abf"
    formula = "b'^(-2i/d) with another base b'"
    source = "arXiv 2309.16039"

    base: float = field(metadata=above(1))

    def frequencies(self, rope: Rope, length: int | None = None) -> Frequencies:
        return Frequencies(rope.inv_freq_with_base(self.base))
