"""Two formulas that circulate in tutorials under the name of dynamic NTK.

Both multiply the frequencies by a number above 1, so every pair turns faster: the wrong way. They are here as
they are written there, because people copy them, and so that the evaluation can show what they do.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from ropewalk.errors import check_number
from ropewalk.frequencies import Frequencies
from ropewalk.rope import Rope
from ropewalk.scaling.base import Scaling


@dataclass(frozen=True)
class PowerNTK(Scaling):
    """theta_i (l/L)^gamma past L: turns faster, the wrong way; kept for comparison."""

    name = "power-ntk"
    formula = "theta_i max(1, l/L)^gamma (the wrong way)"
    source = "circulates in tutorials"

    gamma: float = 0.4

    def __post_init__(self) -> None:
        super().__post_init__()
        check_number("power-ntk: gamma", self.gamma, minimum=0)

    @property
    def is_dynamic(self) -> bool:
        return True

    def frequencies(self, rope: Rope, length: int | None = None) -> Frequencies:
        return Frequencies(rope.inv_freq * max(1.0, self.length_ratio(rope, length)) ** self.gamma)


@dataclass(frozen=True)
class LogNTK(Scaling):
    """theta_i max(1, s (ln(l/L) + 1)): turns faster, the wrong way; kept for comparison."""

    name = "log-ntk"
    formula = "theta_i max(1, s (ln(l/L) + 1)) (the wrong way)"
    source = "circulates in tutorials"

    factor: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        check_number("log-ntk: factor", self.factor, minimum=1)

    @property
    def is_dynamic(self) -> bool:
        return True

    def frequencies(self, rope: Rope, length: int | None = None) -> Frequencies:
        return Frequencies(rope.inv_freq * max(1.0, self.factor * (math.log(self.length_ratio(rope, length)) + 1)))
