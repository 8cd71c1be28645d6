from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ropewalk.errors import InputError
from ropewalk.frequencies import Frequencies
from ropewalk.rope import Rope
from ropewalk.scaling.base import Scaling, at_least


@dataclass(frozen=True, repr=False)
class Proportional(Scaling):
    """p-RoPE: rotate only the fastest fraction `p` of the pairs; the others get frequency 0 (arXiv 2410.06205).

    Args:
        p: fraction of the pairs that are rotated, 0 to 1.
        factor: divides the frequencies of these pairs, as in transformers' `proportional`.
    """

    name = "proportional"
    aliases = ("p-rope",)
    formula = "theta_i for the fastest p of the pairs, 0 for the rest"
    source = "arXiv 2410.06205; transformers `proportional`"

    p: float = field(metadata=at_least(0))
    factor: float = field(default=1.0, metadata=at_least(1))

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.p > 1:
            raise InputError("proportional: p", self.p, "a number from 0 to 1")

    def frequencies(self, rope: Rope, length: int | None = None) -> Frequencies:
        rotated_pairs = int(self.p * rope.dim // 2)
        is_rotated = np.arange(rope.dim // 2) < rotated_pairs
        return Frequencies(np.where(is_rotated, rope.inv_freq / self.factor, 0.0))

    def to_rope_parameters(self, rope: Rope, length: int | None = None) -> dict[str, Any]:
        return {"rope_type": "proportional", "partial_rotary_factor": float(self.p), "factor": float(self.factor)}
