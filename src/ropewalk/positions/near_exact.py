from __future__ import annotations

from dataclasses import MISSING, dataclass, field, fields
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ropewalk.errors import InputError
from ropewalk.frequencies import Frequencies
from ropewalk.method import at_least, whole
from ropewalk.positions.base import Positions, WindowedMethod, resolve_window, smallest_factor
from ropewalk.rope import Rope
from ropewalk.scaling import Scaling, find_scaling
from ropewalk.spec import build_from_options


@dataclass(frozen=True, repr=False)
class NearExact(WindowedMethod):
    """Near keys at their trained distance, far keys by the frequencies of a scaling; a method of ropewalk's own.

    Leaky ReRoPE slows all pairs of far keys down alike. Here, each pair i is slowed down as a scaling such as
    NTK-by-parts does it, from theta_i to theta'_i, so that fast pairs keep their resolution. The angle of a far key is

        W theta_i + (m - n - W) theta'_i

    which continues that of a near key; with the scaling `linear` it is that of Leaky ReRoPE. jetlong_freq of
    github.com/jet-ai-projects/Jet-Long is close to it, with YaRN's frequencies and without continuity.

    Args:
        scaling: the name of a static scaling with a `factor`, which gives theta'. Its attention factor, if it has one,
            applies to far keys only.
        factor: of the scaling. By default the smallest that keeps the slowest pair within the training.
        window: W, tokens; a key fewer than this many tokens back is near. By default half of the original length.
        continuous: whether far angles continue the near ones. Otherwise they are (m - n) theta'_i.
    """

    name = "near-exact"
    formula = "far: angle W theta_i + (m - n - W) theta'_i, theta' of a scaling"
    source = "ropewalk; far frequencies by arXiv 2309.00071 eq. 20-21"

    scaling: str = "ntk-by-parts"
    factor: float | None = field(default=None, metadata=at_least(1))
    window: int | None = field(default=None, metadata=whole("tokens"))
    continuous: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        if not isinstance(self.continuous, bool):
            raise InputError("near-exact: continuous", self.continuous, "true, false")
        cls = find_scaling(self.scaling)
        required = {f.name for f in fields(cls) if f.default is MISSING} | {"factor"}
        has_factor_alone = required == {"factor"} and "factor" in {f.name for f in fields(cls)}
        if not has_factor_alone or self._build_scaling(factor=2).is_dynamic:
            raise InputError("near-exact: scaling", self.scaling, "the name of a static scaling with a factor")

    def choose_options(self, original_length: int, length: int) -> dict[str, Any]:
        window = resolve_window(self.window, original_length)
        kept = window if self.continuous else 0  # tokens of a far distance that are not scaled
        return {"window": window, "factor": self.factor or smallest_factor(original_length, kept, length)}

    def query_position(self, queries: Positions) -> Positions:
        return queries

    def key_position(self, keys: Positions) -> Positions:
        return keys

    def far_frequencies(self, rope: Rope) -> Frequencies:
        return self._build_scaling(self.factor).frequencies(rope)

    def far_query_phase(self, rope: Rope) -> NDArray[np.float64] | None:
        if not self.continuous:
            return None
        assert self.window  # resolved
        return np.asarray(self.window * (rope.inv_freq - self.far_frequencies(rope).inv_freq))

    def _build_scaling(self, factor: float | None) -> Scaling:
        cls = find_scaling(self.scaling)
        return build_from_options(cls, {"factor": factor, "original_length": self.original_length})
