"""Build the prompts of a verification: growing prefixes of a text, and single tokens.

Each prefix continues the previous one, so an engine that reuses its KV cache processes them like a chat. Keys that were
cached under other frequencies or at other positions then show as a difference.

An engine that gives each request its own factor also gets all prefixes at once, as a batch, and reads the last token of
each as a generated one.

A prompt of a single token attends only to itself, whatever the rotation. Its difference from the reference is numerical
noise of the engine and has nothing to do with positions.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np

from ropewalk.errors import InputError

T = TypeVar("T")

_NUM_DEPTHS = 24  # fewer if two of them would be equal
_NUM_SINGLE_TOKENS = 24


@dataclass(frozen=True)
class Prompts:
    """The prompts of one verification.

    Attributes:
        text: token ids, as many as the largest depth.
        single_tokens: token ids that are prompts by themselves.
        depths: length of each prefix of the text in tokens, increasing.
        restart_after: send the single tokens after the prefixes of at most this length, so that the first longer
            prefix cannot continue a cache: the frequencies change there. None: send the single tokens first.
        has_batch: whether to send all prefixes at once, too.
    """

    text: tuple[int, ...]
    single_tokens: tuple[int, ...]
    depths: tuple[int, ...]
    restart_after: int | None = None
    has_batch: bool = False

    @property
    def in_order(self) -> list[list[int]]:
        """All prompts in the order in which the engine gets them."""
        prefixes = [list(self.text[:depth]) for depth in self.depths]
        before = self._num_depths_before_restart
        return [*prefixes[:before], *([token] for token in self.single_tokens), *prefixes[before:]]

    @property
    def batch(self) -> list[list[int]]:
        """The prefixes to send at once after all other prompts; the engine is made to generate the last token of each.

        So the engine decodes some of them while it reads others. The predictions are those after the whole prefix.
        """
        return [list(self.text[:depth]) for depth in self.depths] if self.has_batch else []

    def split(self, outputs: Sequence[T]) -> tuple[list[T], list[T]]:
        """Split the outputs for `in_order` into those of the depths and those of the single tokens."""
        start = self._num_depths_before_restart
        end = start + len(self.single_tokens)
        return [*outputs[:start], *outputs[end:]], list(outputs[start:end])

    @property
    def _num_depths_before_restart(self) -> int:
        return sum(self.restart_after is not None and depth <= self.restart_after for depth in self.depths)


def build_prompts(
    token_ids: Sequence[int],
    length: int,
    original_length: int | None,
    *,
    restart_past_original: bool = False,
    factor_lengths: Sequence[int] = (),
) -> Prompts:
    """Build prompts from a text of up to `length` tokens.

    Args:
        token_ids: the text; at least `length` tokens.
        length: largest depth, tokens.
        original_length: tokens that the model was trained on. A quarter of the depths is within it, the rest past it.
        restart_past_original: whether prefixes past the original length must not continue a shorter one.
        factor_lengths: lengths that the factors cover if each request gets its own. The last request within each of
            them and the first one past it are added, and a batch.

    Raises InputError for a length that is too small, or larger than the text.
    """
    # The errors report the length that the user gave, which is one larger: it has room for the predicted token.
    if len(token_ids) < length:
        raise InputError("length", length + 1, f"at most {len(token_ids) + 1:,}, for the tokens of the text")
    if length < 2 * _NUM_DEPTHS:
        raise InputError("length", length + 1, f"at least {2 * _NUM_DEPTHS + 1} tokens")
    if original_length is None or original_length >= length:
        spread = np.geomspace(2, length, _NUM_DEPTHS)
    else:
        num_within = _NUM_DEPTHS // 4
        num_past = _NUM_DEPTHS - num_within
        within = np.geomspace(max(2, original_length // 32), original_length * 15 / 16, num_within)
        past = original_length + (length - original_length) * np.arange(1, num_past + 1) / num_past
        spread = np.concatenate([within, past])
    borders = [depth for covered in factor_lengths for depth in (covered - 1, covered) if depth <= length]
    depths = np.unique([*np.round(spread).astype(int), *borders]).tolist()
    distinct_tokens = list(dict.fromkeys(token_ids))
    stride = max(1, len(distinct_tokens) // _NUM_SINGLE_TOKENS)
    single_tokens = distinct_tokens[::stride][:_NUM_SINGLE_TOKENS]
    restart_after = original_length if restart_past_original else None
    return Prompts(
        tuple(token_ids[:length]), tuple(single_tokens), tuple(depths), restart_after, has_batch=bool(factor_lengths)
    )
