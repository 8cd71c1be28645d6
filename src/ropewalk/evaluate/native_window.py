"""The reference for every long-text method: the unscaled model, which reads its last tokens again and again.

A model never leaves its training range if a text is read in overlapping windows of its original length. That costs
many times the work of one pass, and no token sees more than one window. It is the simplest baseline for a method that
keeps the weights.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from ropewalk.errors import InputError, check_length
from ropewalk.evaluate.perplexity import compute_nll
from ropewalk.models.extend import extended
from ropewalk.scaling.none import NoScaling

STRIDES_PER_WINDOW = 8


def native_window_nll(
    model: Any,
    ids_T: Tensor,
    window: int,
    *,
    stride: int | None = None,
    on_tokens: Callable[[float], None] | None = None,
) -> NDArray[np.float64]:
    """Return the loss of each token after the first, in nats, [T - 1]: the last `window` tokens are read for each.

    Args:
        model: a causal language model of transformers; it is read unscaled, and restored to its present state.
        ids_T: token ids.
        window: tokens of each pass, at least 2; the original length, or fewer.
        stride: new tokens of each pass after the first, below `window`; by default an eighth of it. A token past the
            first window is predicted from window - stride to window - 1 tokens before it.
        on_tokens: see `token_nll`; a whole run reports `native_window_tokens`.

    Raises InputError for a window or a stride outside of its range.
    """
    passes = _plan_passes(len(ids_T), window, stride)
    nll_T = np.zeros(len(ids_T) - 1)
    read = 1  # tokens with a loss, and the first, which has none
    with extended(model, NoScaling()):
        for start, end in passes:
            pass_nll = compute_nll(model, ids_T[start:end], on_tokens)
            nll_T[read - 1 : end - 1] = pass_nll[read - end :]
            read = end
    return nll_T


def native_window_tokens(total: int, window: int, stride: int | None = None) -> int:
    """Return how many tokens `native_window_nll` reads for a text of `total` tokens."""
    return sum(end - start for start, end in _plan_passes(total, window, stride))


def _plan_passes(total: int, window: int, stride: int | None) -> list[tuple[int, int]]:
    """Return the first token of each pass and the one after its last."""
    if check_length("window", window) < 2:
        raise InputError("window", window, "at least 2 tokens")
    stride = max(1, window // STRIDES_PER_WINDOW) if stride is None else check_length("stride", stride)
    if stride >= window:
        raise InputError("stride", stride, f"below the window of {window:,} tokens")
    ends = [*range(min(window, total), total, stride), total]
    return [(max(0, end - window), end) for end in ends]
