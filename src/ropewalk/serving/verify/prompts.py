"""What the engine is asked: prompts of token ids that grow along a text, and tokens that stand alone.

A token that stands alone sees itself alone, whatever the rotation: what an engine's answer then differs by is its
arithmetic. A prompt that continues the one before it is read, by an engine that reuses what it cached, as a chat is:
keys that were cached under other frequencies, or at other positions, show.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np

from ropewalk.errors import InputError

T = TypeVar("T")

DEPTHS = 24
ALONE = 24


@dataclass(frozen=True)
class Prompts:
    """The prompts of one verification, in the order they are asked.

    Attributes:
        text: token ids, as many as the greatest depth.
        alone: tokens to ask about alone.
        depths: tokens of the text that each prompt has, growing.
        original: tokens after which the text is begun anew, because the frequencies change there; None for never.
    """

    text: tuple[int, ...]
    alone: tuple[int, ...]
    depths: tuple[int, ...]
    original: int | None = None

    @property
    def all(self) -> list[list[int]]:
        """Those within the original length, the single ones (which begin the text anew), those past it."""
        early, late = ([self.text[:d] for d in self.depths if self._early(d) is wanted] for wanted in (True, False))
        return [list(prompt) for prompt in (*early, *((token,) for token in self.alone), *late)]

    def split(self, answers: Sequence[T]) -> tuple[list[T], list[T]]:
        """Of answers to `all`: those at the depths, and those about the single tokens."""
        early = sum(self._early(d) for d in self.depths)
        late = early + len(self.alone)
        return [*answers[:early], *answers[late:]], list(answers[early:late])

    def _early(self, depth: int) -> bool:
        return self.original is not None and depth <= self.original


def prompts_of(
    ids: Sequence[int], length: int, original: int | None, depths: int = DEPTHS, anew: bool = False
) -> Prompts:
    """Prompts along a text, of up to `length` tokens: a quarter of the depths within the original length.

    Raises InputError for a text that is too short.
    """
    if len(ids) < length:
        raise InputError("length", length, f"at most {len(ids):,}, the tokens of the text")
    if length < 2 * depths:
        raise InputError("length", length, f"at least {2 * depths} tokens")
    if original is None or original >= length:
        chosen = np.geomspace(2, length, depths)
    else:
        within = depths // 4
        first = max(2, original // 32)
        chosen = np.concatenate([
            np.geomspace(first, original * 15 / 16, within),
            original + (length - original) * np.arange(1, depths - within + 1) / (depths - within),
        ])  # fmt: skip
    unique = dict.fromkeys(ids)
    alone = tuple(list(unique)[:: max(1, len(unique) // ALONE)][:ALONE])
    depths_T = np.unique(np.round(chosen).astype(int)).tolist()
    return Prompts(tuple(ids[:length]), alone, tuple(depths_T), original if anew else None)
