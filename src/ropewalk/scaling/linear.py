from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from ropewalk.frequencies import Frequencies
from ropewalk.rope import Rope
from ropewalk.scaling.base import Scaling, at_least


@dataclass(frozen=True, repr=False)
class Linear(Scaling):
    """Position interpolation: divide every frequency by `factor` (arXiv 2306.15595, eq. 4)."""

    name = "linear"
    aliases = ("pi",)
    formula = "theta_i / s"
    source = "position interpolation, arXiv 2306.15595"

    factor: float = field(metadata=at_least(1))

    def frequencies(self, rope: Rope, length: int | None = None) -> Frequencies:
        return Frequencies(rope.inv_freq / self.factor)

    def to_rope_parameters(self, rope: Rope, length: int | None = None) -> dict[str, Any]:
        return {"rope_type": "linear", "factor": float(self.factor)}
