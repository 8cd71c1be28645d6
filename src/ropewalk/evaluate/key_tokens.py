"""Find key tokens: tokens that a model predicts well only with a long context (LongPPL, arXiv 2410.23771).

Perplexity averages over all tokens, most of which a model predicts from a few sentences. An evaluator model reads each
token twice, after the whole text so far and after a short context only. A token is a key token if the long context
makes it much more probable (the long-short difference, eq. 2 of the paper) and if the evaluator then predicts it well
(the long-context likelihood). LongPPL is the perplexity on these tokens.

    indices = find_key_tokens(model, ids_T)
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from ropewalk.errors import InputError
from ropewalk.evaluate.perplexity import compute_nll, perplexity_of


@dataclass(frozen=True)
class KeyTokenRule:
    """What makes a token a key token. The defaults are those of longppl.py of github.com/PKU-ML/LongPPL.

    Attributes:
        short_context: fewest tokens of the short context; tokens before it are never key tokens.
        step: consecutive tokens that share one beginning of the short context, which therefore has up to
            `short_context` + `step` - 1 tokens.
        min_gain: nats by which the loss after the short context must exceed that after the long one (alpha).
        max_loss: nats below which the loss after the long context must be (-beta).
    """

    short_context: int = 4096
    step: int = 1024
    min_gain: float = 2.0
    max_loss: float = 2.0

    @classmethod
    def for_length(cls, length: int) -> KeyTokenRule:
        """Return the rule for a text of `length` tokens: the short context is at most a third of it."""
        short_context = max(1, min(cls.short_context, length // 3))
        return cls(short_context, max(1, min(cls.step, short_context // 4)))

    def count_tokens(self, length: int) -> int:
        """Return how many tokens the evaluator reads for a text of `length` tokens."""
        return length + sum(stop - start for start, _, stop in self._windows(length))

    def _windows(self, length: int) -> Iterator[tuple[int, int, int]]:
        """Yield (first token read, first token predicted, end) of each short context."""
        for start in range(0, length - self.short_context, self.step):
            first = start + self.short_context
            yield start, first, min(first + self.step, length)


DEFAULT_RULE = KeyTokenRule()


def find_key_tokens(
    model: Any,
    ids_T: Tensor,
    rule: KeyTokenRule = DEFAULT_RULE,
    on_tokens: Callable[[float], None] | None = None,
) -> NDArray[np.int64]:
    """Return the indices of the key tokens of a text, in rising order.

    Args:
        model: the evaluator, a causal language model of transformers, with the scaling that it has now.
        ids_T: token ids of the text.
        rule: what makes a token a key token.
        on_tokens: called with the number of tokens read since its last call.
    """
    if len(ids_T) <= rule.short_context:
        return np.zeros(0, np.int64)
    long_nll_T = compute_nll(model, ids_T, on_tokens, first=rule.short_context)
    return select_key_tokens(long_nll_T, read_short_losses(model, ids_T, rule, on_tokens), rule)


def read_short_losses(
    model: Any, ids_T: Tensor, rule: KeyTokenRule, on_tokens: Callable[[float], None] | None = None
) -> NDArray[np.float64]:
    """Return the loss of each token from `short_context` on, in nats, after its short context only.

    The arguments are those of `find_key_tokens`; the text is longer than the short context.
    """
    parts = [
        compute_nll(model, ids_T[start:stop], on_tokens, first=first - start)
        for start, first, stop in rule._windows(len(ids_T))
    ]
    return np.concatenate(parts)


def select_key_tokens(
    long_nll_T: NDArray[Any], short_nll_T: NDArray[Any], rule: KeyTokenRule, at_least: int = 0
) -> NDArray[np.int64]:
    """Return the indices of the key tokens, from the losses of the tokens from `short_context` on, in nats.

    Args:
        long_nll_T, short_nll_T: losses after the whole text so far, and after the short context.
        rule: what makes a token a key token.
        at_least: if fewer are found, the tokens with the largest gains are taken instead, of those with a gain and a
            loss below `max_loss`.
    """
    gain_T = np.where(long_nll_T < rule.max_loss, short_nll_T - long_nll_T, 0.0)
    smallest_gain = rule.min_gain
    if at_least and (gain_T > smallest_gain).sum() < at_least:
        smallest_gain = max(0.0, np.sort(gain_T)[-at_least - 1 :][0])
    return np.flatnonzero(gain_T > smallest_gain) + rule.short_context


def translate_key_tokens(
    indices: NDArray[np.int64], offsets: Sequence[tuple[int, int]], other_offsets: Sequence[tuple[int, int]]
) -> NDArray[np.int64]:
    """Return the key tokens under another tokenizer: the tokens that consist of characters of key tokens only.

    Args:
        indices: key tokens under the first tokenizer.
        offsets: first character and end of each token under the first tokenizer.
        other_offsets: the same under the other one.
    """
    is_key_character = np.zeros(max((end for _, end in (*offsets, *other_offsets)), default=0), bool)
    for index in indices:
        start, end = offsets[index]
        is_key_character[start:end] = True
    found = [
        index
        for index, (start, end) in enumerate(other_offsets)
        if start < end and index > 0 and is_key_character[start:end].all()
    ]
    return np.array(found, np.int64)


def token_offsets(tokenizer: Any, text: str) -> tuple[list[int], list[tuple[int, int]]]:
    """Return the token ids of a text, and first character and end of each token.

    Raises InputError for a tokenizer that does not know them.
    """
    try:
        encoded = tokenizer(text, return_offsets_mapping=True, verbose=False)
    except (NotImplementedError, TypeError):
        expected = "the model itself, since one of the tokenizers does not report the characters of its tokens"
        raise InputError("evaluator", type(tokenizer).__name__, expected) from None
    return encoded["input_ids"], encoded["offset_mapping"]


def long_perplexity(nll_T: NDArray[np.float64], indices: NDArray[np.int64]) -> tuple[float | None, int]:
    """Return LongPPL and the number of key tokens it is over; None without any.

    Args:
        nll_T: loss of each token after the first, in nats.
        indices: key tokens of the text; those past the losses are ignored.
    """
    within = indices[indices <= len(nll_T)]
    if not len(within):
        return None, 0
    return perplexity_of(float(nll_T[within - 1].mean())), len(within)


def digest_key_tokens(indices: NDArray[np.int64], length: int) -> str:
    """Return a short digest of the key tokens among the first `length` tokens, which tells them from others."""
    return hashlib.sha256(indices[indices < length].astype("<i8").tobytes()).hexdigest()[:16]
