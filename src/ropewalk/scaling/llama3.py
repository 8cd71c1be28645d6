from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ropewalk.errors import InputError
from ropewalk.frequencies import Frequencies
from ropewalk.rope import Rope
from ropewalk.scaling.base import Scaling, above, at_least
from ropewalk.scaling.by_parts import blend_frequencies


@dataclass(frozen=True, repr=False)
class Llama3(Scaling):
    """Llama 3.1's scaling: keep short wavelengths, interpolate long ones, blend those in between (Llama 3.1 release).

    Args:
        factor: divides the frequencies of pairs with a wavelength above L/low_freq_factor.
        low_freq_factor: as above, in rotations over the original length L.
        high_freq_factor: pairs with a wavelength below L/high_freq_factor keep their frequency. Equal to
            low_freq_factor, as in Llama 4, it makes the blend a step.
    """

    name = "llama3"
    formula = "theta_i, theta_i/s or a blend, by wavelength against L/high_freq_factor and L/low_freq_factor"
    source = "Llama 3.1 release"

    factor: float = field(default=8.0, metadata=at_least(1))
    low_freq_factor: float = field(default=1.0, metadata=above(0))
    high_freq_factor: float = field(default=4.0, metadata=above(0))

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.high_freq_factor < self.low_freq_factor:
            allowed = f"at least low_freq_factor ({self.low_freq_factor:g})"
            raise InputError("llama3: high_freq_factor", self.high_freq_factor, allowed)

    def frequencies(self, rope: Rope, length: int | None = None) -> Frequencies:
        above_low = rope.rotations(self.resolve_original_length(rope)) - self.low_freq_factor
        band = self.high_freq_factor - self.low_freq_factor
        kept_fraction = np.clip(above_low / band, 0.0, 1.0) if band else np.where(above_low > 0, 1.0, 0.0)
        return Frequencies(blend_frequencies(rope.inv_freq, self.factor, kept_fraction))

    def to_rope_parameters(self, rope: Rope, length: int | None = None) -> dict[str, Any]:
        return {
            "rope_type": "llama3",
            "factor": float(self.factor),
            "low_freq_factor": float(self.low_freq_factor),
            "high_freq_factor": float(self.high_freq_factor),
            "original_max_position_embeddings": self.resolve_original_length(rope),
        }
