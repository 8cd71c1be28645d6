from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from ropewalk.errors import InputError, check_number
from ropewalk.frequencies import Frequencies
from ropewalk.rope import Rope
from ropewalk.scaling.base import Scaling


@dataclass(frozen=True)
class Proportional(Scaling):
    """p-RoPE: the fastest `p` of the pairs turn, the others stand still (arXiv 2410.06205).

    `factor` divides the frequencies that are left, as in transformers' `proportional`.
    """

    name = "proportional"
    aliases = ("p-rope",)
    formula = "theta_i for the fastest p of the pairs, 0 for the rest"
    source = "arXiv 2410.06205; transformers `proportional`"

    p: float
    factor: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if check_number("proportional: p", self.p, minimum=0) > 1:
            raise InputError("proportional: p", self.p, "a number from 0 to 1")
        check_number("proportional: factor", self.factor, minimum=1)

    def frequencies(self, rope: Rope, length: int | None = None) -> Frequencies:
        turning = int(self.p * rope.dim // 2)
        return Frequencies(np.where(np.arange(rope.dim // 2) < turning, rope.inv_freq / self.factor, 0.0))

    def to_rope_parameters(self, rope: Rope, length: int | None = None) -> dict[str, Any]:
        return {"rope_type": "proportional", "partial_rotary_factor": float(self.p), "factor": float(self.factor)}
