"""An engine's log-probabilities against the reference's."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

TOP = 64
Answer = Sequence[tuple[int, float]]  # the tokens that an engine thinks likeliest, and their log-probabilities


def differences(reference: NDArray[np.float32], answers: Sequence[Answer]) -> list[float]:
    """At each depth, the median over the tokens that the engine named of |log p - reference's log p|, nats.

    The median, because it is the same for sure and for open predictions; a token that rounding moved in or out of
    the list does not sway it. `reference`: [depths, vocabulary].
    """
    found = []
    for row, answer in zip(reference, answers, strict=True):
        ids, log_p = np.array([each[0] for each in answer]), np.array([each[1] for each in answer])
        found.append(float(np.median(abs(log_p - row[ids]))))
    return found


def likeliest(reference: NDArray[np.float32], top: int = TOP) -> list[Answer]:
    """The answers that the reference itself would give."""
    best = np.argsort(-reference, axis=-1)[:, :top]
    return [list(zip(ids.tolist(), row[ids].tolist(), strict=True)) for ids, row in zip(best, reference, strict=True)]
