from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ropewalk.frequencies import Frequencies
from ropewalk.rope import Rope
from ropewalk.scaling.base import Scaling


@dataclass(frozen=True, repr=False)
class NoScaling(Scaling):
    """The frequencies the model was trained with (RoFormer, arXiv 2104.09864)."""

    name = "none"
    aliases = ("default", "mrope")
    formula = "theta_i = b^(-2i/d)"
    source = "RoFormer, arXiv 2104.09864"

    def frequencies(self, rope: Rope, length: int | None = None) -> Frequencies:
        return Frequencies(rope.inv_freq)

    def to_rope_parameters(self, rope: Rope, length: int | None = None) -> dict[str, Any]:
        return {"rope_type": "default"}
