from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from ropewalk.errors import InputError, check_number
from ropewalk.frequencies import Frequencies
from ropewalk.rope import Rope
from ropewalk.scaling.base import Scaling


@dataclass(frozen=True)
class Llama3(Scaling):
    """Llama 3.1's scaling: by wavelength, untouched below L/high_freq_factor, divided above L/low_freq_factor.

    Between the two the frequency is blended linearly in the rotations over L (the Llama 3.1 release). With both factors
    the same, as Llama 4 has them, it is a step.
    """

    name = "llama3"
    formula = "theta_i, theta_i/s or a blend, by wavelength against L/high_freq_factor and L/low_freq_factor"
    source = "Llama 3.1 release"

    factor: float = 8.0
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0

    def __post_init__(self) -> None:
        super().__post_init__()
        check_number("llama3: factor", self.factor, minimum=1)
        check_number("llama3: low_freq_factor", self.low_freq_factor, minimum=0, exclusive=True)
        check_number("llama3: high_freq_factor", self.high_freq_factor, minimum=0, exclusive=True)
        if self.high_freq_factor < self.low_freq_factor:
            low = f"at least low_freq_factor ({self.low_freq_factor:g})"
            raise InputError("llama3: high_freq_factor", self.high_freq_factor, low)

    def frequencies(self, rope: Rope, length: int | None = None) -> Frequencies:
        turned = rope.rotations(self.resolve_original_length(rope))
        band = self.high_freq_factor - self.low_freq_factor
        past_low = turned - self.low_freq_factor
        kept = np.clip(past_low / band, 0.0, 1.0) if band else np.where(past_low > 0, 1.0, 0.0)
        return Frequencies(rope.inv_freq * ((1 - kept) / self.factor + kept))

    def to_rope_parameters(self, rope: Rope, length: int | None = None) -> dict[str, Any]:
        return {
            "rope_type": "llama3",
            "factor": float(self.factor),
            "low_freq_factor": float(self.low_freq_factor),
            "high_freq_factor": float(self.high_freq_factor),
            "original_max_position_embeddings": self.resolve_original_length(rope),
        }
