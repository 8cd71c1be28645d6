from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from ropewalk.method import whole
from ropewalk.positions.base import Positions, WindowedMethod

_PUBLISHED_WINDOW = 2048  # w_0 of every configuration in github.com/jet-ai-projects/Jet-Long


@dataclass(frozen=True, repr=False)
class JetLong(WindowedMethod):
    """Jet-Long: far positions in groups that grow with the text, G = ceil(l / L) (arXiv 2607.07740).

    Unlike in Self-Extend, the far distance is not shifted by the window: at the end of the window it falls to 1/G. The
    published code (jetlm/modeling/jetlong of github.com/jet-ai-projects/Jet-Long) takes G from the last position of a
    call, for all queries of that call. Here each query has the G of its own position, which is the same while tokens
    are generated one by one, and which makes a long prompt independent of the calls that it is split into.

    Args:
        window: w_0, tokens; a key up to this many tokens back is near. By default 2048, as published, and half of the
            original length if that is less.
        group: G. By default ceil(l / L).
    """

    name = "jet-long"
    formula = "far: query floor(m/G), key floor(n/G), G = ceil(l/L)"
    source = "Jet-Long, arXiv 2607.07740; github.com/jet-ai-projects/Jet-Long"

    window: int | None = field(default=None, metadata=whole("tokens"))
    group: int | None = field(default=None, metadata=whole("tokens"))

    def choose_options(self, original_length: int, length: int) -> dict[str, Any]:
        window = self.window or min(_PUBLISHED_WINDOW, max(1, original_length // 2))
        return {"window": window, "group": self.group or -(-length // original_length)}

    def near_start(self, queries: Positions) -> Positions:
        # The published window of flash attention, (w_0, 0), includes the key w_0 tokens back.
        return (queries - self.window).clip(min=0) * self.is_past_training(queries)

    def query_position(self, queries: Positions) -> Positions:
        return queries // self.group

    def key_position(self, keys: Positions) -> Positions:
        return keys // self.group
