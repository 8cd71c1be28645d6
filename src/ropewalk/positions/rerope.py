from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from ropewalk.method import at_least, whole
from ropewalk.positions.base import Positions, WindowedMethod, resolve_window, smallest_factor


@dataclass(frozen=True, repr=False)
class LeakyReRoPE(WindowedMethod):
    """Leaky ReRoPE: past the window, distances grow k times more slowly (Su, 2023, kexue.fm 9708, eq. 4).

    The published code is leaky_rerope_patch.py of github.com/bojone/rerope, which also multiplies the logits as
    `logit_scaling="log-n"` does.

    Args:
        factor: k, by which far positions are divided. By default the smallest with which no distance exceeds
            the original length.
        window: W, tokens; a key fewer than this many tokens back is near. By default half of the original length.
    """

    name = "leaky-rerope"
    formula = "far: query m/k + W - W/k, key n/k"
    source = "Su, 2023, kexue.fm 9708 eq. 4; github.com/bojone/rerope"

    factor: float | None = field(default=None, metadata=at_least(1))
    window: int | None = field(default=None, metadata=whole("tokens"))

    def choose_options(self, original_length: int, length: int) -> dict[str, Any]:
        window = resolve_window(self.window, original_length)
        return {"window": window, "factor": self.factor or smallest_factor(original_length, window, length)}

    def query_position(self, queries: Positions) -> Positions:
        assert self.factor  # resolved
        assert self.window
        return queries / self.factor + (self.window - self.window / self.factor)

    def key_position(self, keys: Positions) -> Positions:
        return keys / self.factor


@dataclass(frozen=True, repr=False)
class ReRoPE(WindowedMethod):
    """ReRoPE: every key past the window is at the distance of the window (Su, 2023, kexue.fm 9708, eq. 3).

    It is Leaky ReRoPE with an infinite factor, so it reads texts of any length. The published code is rerope_patch.py
    of github.com/bojone/rerope, which also multiplies the logits as `logit_scaling="log-n"` does.

    Args:
        window: W, tokens; a key fewer than this many tokens back is near. By default half of the original length.
    """

    name = "rerope"
    formula = "far: query W, key 0"
    source = "Su, 2023, kexue.fm 9708 eq. 3; github.com/bojone/rerope"

    window: int | None = field(default=None, metadata=whole("tokens"))

    def choose_options(self, original_length: int, length: int) -> dict[str, Any]:
        return {"window": resolve_window(self.window, original_length)}

    def query_position(self, queries: Positions) -> Positions:
        return queries * 0 + self.window

    def key_position(self, keys: Positions) -> Positions:
        return keys * 0
