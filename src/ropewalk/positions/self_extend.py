from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from ropewalk.method import whole
from ropewalk.positions.base import Positions, WindowedMethod, resolve_window, smallest_factor


@dataclass(frozen=True, repr=False)
class SelfExtend(WindowedMethod):
    """Self-Extend: far keys share a position in groups (arXiv 2401.01325, sec. 3.2 and algorithm 1).

    Args:
        group: G, the number of neighboring tokens that share one far position. By default the smallest with which
            no distance exceeds the original length.
        window: W, tokens; a key fewer than this many tokens back is near. By default half of the original length.
    """

    name = "self-extend"
    formula = "far: query floor(m/G) + W - floor(W/G), key floor(n/G)"
    source = "Self-Extend, arXiv 2401.01325 sec. 3.2"

    group: int | None = field(default=None, metadata=whole("tokens"))
    window: int | None = field(default=None, metadata=whole("tokens"))

    def choose_options(self, original_length: int, length: int) -> dict[str, Any]:
        window = resolve_window(self.window, original_length)
        group = self.group or int(smallest_factor(original_length, window, length, step=1))
        return {"window": window, "group": group}

    def query_position(self, queries: Positions) -> Positions:
        assert self.group  # resolved
        assert self.window
        return queries // self.group + (self.window - self.window // self.group)

    def key_position(self, keys: Positions) -> Positions:
        return keys // self.group
