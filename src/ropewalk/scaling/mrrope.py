"""MrRoPE: scale the slow pairs as YaRN does, and in between by a power of the factor that grows with the index."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from ropewalk.errors import InputError
from ropewalk.frequencies import Frequencies
from ropewalk.rope import Rope
from ropewalk.scaling.base import Scaling, above, at_least
from ropewalk.scaling.by_parts import correction_range
from ropewalk.scaling.yarn import yarn_mscale


@dataclass(frozen=True, repr=False)
class MrRoPE(Scaling):
    """Mixed-radix RoPE, theta_i / s^e_i (arXiv 2601.22181, eq. 15-16); an abstract class.

    The exponent e_i is 0 up to the pair l and 1 from the pair h on. These are the bounds of YaRN's ramp by index, as in
    the code of the authors (github.com/mattian7/mrRoPE), which counts pairs from 0. The attention factor is YaRN's.

    Args:
        factor: target length over original length, s.
        beta_fast, beta_slow: rotations over the original length of the pairs l and h.
        attention_factor: replaces the default of 0.1 ln s + 1.
    """

    factor: float = field(metadata=at_least(1))
    # Numbers below 1e-9 would overflow the bounds.
    beta_fast: float = field(default=32.0, metadata=at_least(1e-9))
    beta_slow: float = field(default=1.0, metadata=at_least(1e-9))
    attention_factor: float | None = field(default=None, metadata=above(0))

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.beta_fast < self.beta_slow:
            raise InputError(f"{self.name}: beta_fast", self.beta_fast, f"at least beta_slow ({self.beta_slow:g})")

    def frequencies(self, rope: Rope, length: int | None = None) -> Frequencies:
        low, high = correction_range(rope, self.resolve_original_length(rope), self.beta_fast, self.beta_slow)
        steps = max(high - low, 1)  # equal bounds: a step after the pair l
        step = (np.arange(rope.dim // 2) - low).clip(0, steps)
        attention_factor = yarn_mscale(self.factor) if self.attention_factor is None else self.attention_factor
        return Frequencies(rope.inv_freq / self.factor ** self._exponents(step, steps), float(attention_factor))

    @abstractmethod
    def _exponents(self, step: NDArray[np.float64], steps: float) -> NDArray[np.float64]:
        """Return the exponents e_i, [dim/2].

        Args:
            step: i - l, limited to 0 and h - l, [dim/2].
            steps: h - l.
        """


@dataclass(frozen=True, repr=False)
class MrRoPEUni(MrRoPE):
    """MrRoPE with the same radix factor for each pair between l and h (arXiv 2601.22181, eq. 13)."""

    name = "mrrope-uni"
    formula = "theta_i / s^e, e = clamp((i - l)/(h - l), 0, 1); attention factor 0.1 ln s + 1"
    source = "MrRoPE, arXiv 2601.22181 eq. 13, 15-16"

    def _exponents(self, step: NDArray[np.float64], steps: float) -> NDArray[np.float64]:
        return step / steps


@dataclass(frozen=True, repr=False)
class MrRoPEPro(MrRoPE):
    """MrRoPE with radix factors that grow from pair to pair between l and h (arXiv 2601.22181, eq. 14).

    The pair j multiplies the divisor of all slower ones by s^(2(1 + j - l) / ((1 + h - l)(h - l))). Up to the pair i,
    these exponents add up to k(k + 1) / ((h - l)(h - l + 1)) with k = i - l.
    """

    name = "mrrope-pro"
    formula = "theta_i / s^e, e = k (k + 1)/((h - l)(h - l + 1)), k = clamp(i - l, 0, h - l); attention factor as yarn"
    source = "MrRoPE, arXiv 2601.22181 eq. 14-16"

    def _exponents(self, step: NDArray[np.float64], steps: float) -> NDArray[np.float64]:
        return step * (step + 1) / (steps * (steps + 1))
