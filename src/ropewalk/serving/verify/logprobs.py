"""Compare the top log-probabilities of an engine with the log-probabilities of the reference."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

TOP_K = 64
TopLogprobs = Sequence[tuple[int, float]]  # (token id, log-probability) of the likeliest next tokens


def logprob_differences(reference_DV: NDArray[np.float32], engine_top: Sequence[TopLogprobs]) -> list[float]:
    """Return for each depth the median of |engine's log p - reference's log p| over the engine's top tokens, in nats.

    The median has the same scale for confident and for uncertain predictions, and tokens that rounding moved into or
    out of the top list do not change it.

    Args:
        reference_DV: log-probabilities of the whole vocabulary, [depths, vocabulary].
        engine_top: top tokens of the engine at each depth.
    """
    medians = []
    for reference_V, top in zip(reference_DV, engine_top, strict=True):
        token_ids = np.array([token for token, _ in top])
        logprobs = np.array([logprob for _, logprob in top])
        medians.append(float(np.median(abs(logprobs - reference_V[token_ids]))))
    return medians


def select_top_logprobs(reference_DV: NDArray[np.float32], k: int = TOP_K) -> list[TopLogprobs]:
    """Return the top tokens of the reference at each depth, in the form in which an engine reports its own."""
    ids_DK = np.argsort(-reference_DV, axis=-1)[:, :k]
    return [
        list(zip(ids_K.tolist(), reference_V[ids_K].tolist(), strict=True))
        for ids_K, reference_V in zip(ids_DK, reference_DV, strict=True)
    ]
