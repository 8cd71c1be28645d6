from __future__ import annotations

from dataclasses import dataclass

from ropewalk.frequencies import Frequencies
from ropewalk.rope import Rope
from ropewalk.scaling.base import Scaling


@dataclass(frozen=True, repr=False)
class ABF(Scaling):
    """Adjusted base frequency: use another base (arXiv 2309.16039, sec. 2.1)."""

    name = "abf"
    formula = "b'^(-2i/d) with another base b'"
    source = "arXiv 2309.16039"

    base: float

    def __post_init__(self) -> None:
        super().__post_init__()
        self._check_option("base", minimum=1, exclusive=True)

    def frequencies(self, rope: Rope, length: int | None = None) -> Frequencies:
        return Frequencies(rope.inv_freq_with_base(self.base))
