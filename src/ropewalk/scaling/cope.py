from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ropewalk.errors import InputError
from ropewalk.frequencies import Frequencies
from ropewalk.rope import Rope
from ropewalk.scaling.base import Scaling, at_least
from ropewalk.scaling.longrope import LongRoPE
from ropewalk.scaling.yarn import YaRN


@dataclass(frozen=True, repr=False)
class CoPE(Scaling):
    """Clipped RoPE: taper the slowest pairs to a frequency of 0 by a cosine window (arXiv 2602.05258, sec. 4.2).

    The window falls from 1 at the pair c to 0 at the slowest pair, which no longer rotates. It is linear in the index
    of the pair, as in the code of the authors (github.com/hrlics/CoPE); eq. 10 states it by frequency. The paper trains
    models with it on long texts.

    Args:
        onset: c, the index of the first tapered pair, counted from 0. The default is the first pair that completes no
            rotation over the original length (definition 3.1; CoPE-29 in table 4). The paper's best is 44 of 64 pairs.
        factor: scales the frequencies by YaRN first, as the paper does beyond the length of its training (sec. 5.1).
    """

    name = "cope"
    formula = "theta_i (1 + cos(pi (i - c)/(d/2 - 1 - c)))/2 for i >= c, the first pair with a period above L"
    source = "CoPE, arXiv 2602.05258 sec. 4.2"

    onset: int | None = None
    factor: float = field(default=1.0, metadata=at_least(1))

    def __post_init__(self) -> None:
        super().__post_init__()
        is_index = isinstance(self.onset, int) and not isinstance(self.onset, bool) and self.onset >= 0
        if self.onset is not None and not is_index:
            raise InputError("cope: onset", self.onset, "the index of a pair, such as 44")

    def frequencies(self, rope: Rope, length: int | None = None) -> Frequencies:
        original, pairs = self.resolve_original_length(rope), rope.dim // 2
        onset = int((rope.wavelengths <= original).sum()) if self.onset is None else self.onset
        if onset > pairs:
            raise InputError("cope: onset", onset, f"at most {pairs}, the number of pairs")
        window = (1 + np.cos(np.linspace(0, np.pi, pairs - onset))) / 2
        scaled = YaRN(factor=self.factor, original_length=original).frequencies(rope)
        return Frequencies(scaled.inv_freq * np.append(np.ones(onset), window), scaled.attention_factor)

    def to_rope_parameters(self, rope: Rope, length: int | None = None) -> dict[str, Any]:
        original = self.resolve_original_length(rope)
        lists = LongRoPE.from_frequencies(rope, self.frequencies(rope), self.factor, original)
        return lists.to_rope_parameters(rope)  # type: ignore[return-value]  # it is never None for a static scaling
