"""Two formulas that tutorials publish under the name of dynamic NTK.

Both multiply the frequencies by a number above 1, so they rotate every pair faster on longer texts, which is the
opposite of interpolation. They are implemented as published, because people copy them, so that an evaluation can show
what they do. They are not exported from `ropewalk`, and `plan` never chooses them.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from ropewalk.frequencies import Frequencies
from ropewalk.rope import Rope
from ropewalk.scaling.base import Scaling, at_least


@dataclass(frozen=True, repr=False)
class PowerNTK(Scaling):
    """Multiply the frequencies by (l/L)^gamma past L, which makes the model worse; for comparison only."""

    name = "power-ntk"
    formula = "theta_i max(1, l/L)^gamma (the wrong way)"
    source = "circulates in tutorials"
    is_dynamic = True

    gamma: float = field(default=0.4, metadata=at_least(0))

    def frequencies(self, rope: Rope, length: int | None = None) -> Frequencies:
        return Frequencies(rope.inv_freq * max(1.0, self.length_ratio(rope, length)) ** self.gamma)


@dataclass(frozen=True, repr=False)
class LogNTK(Scaling):
    """Multiply the frequencies by max(1, s (ln(l/L) + 1)), which makes the model worse; for comparison only."""

    name = "log-ntk"
    formula = "theta_i max(1, s (ln(l/L) + 1)) (the wrong way)"
    source = "circulates in tutorials"
    is_dynamic = True

    factor: float = field(default=1.0, metadata=at_least(1))

    def frequencies(self, rope: Rope, length: int | None = None) -> Frequencies:
        return Frequencies(rope.inv_freq * max(1.0, self.factor * (math.log(self.length_ratio(rope, length)) + 1)))
