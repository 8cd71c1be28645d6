"""What a scaling costs on text that fits without it: its short tax.

The model reads the text up to its trained length twice, with and without the scaling. The losses are averaged over
windows of the text, and the two means of each window are compared. The standard error is over the windows of one text:
it tells how much the cost varies along this text, not how much it would differ on another one.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypedDict

import numpy as np
from numpy.typing import NDArray

from ropewalk.evaluate.paired import paired_difference
from ropewalk.evaluate.perplexity import perplexity_of

MAX_WINDOW = 1024  # tokens
_MIN_WINDOWS = 8  # of a text that is shorter than as many of the largest windows


class ShortTax(TypedDict):
    """The cost of a scaling on text of at most the trained length.

    Keys:
        scaling: spec of the scaling.
        tokens: tokens that were read.
        ppl, ppl_unscaled: perplexity with and without the scaling; without, the model is as its makers configured it.
        percent: by how much the scaling raises the perplexity, in percent.
        standard_error: of `percent`, over the windows of the text; None for a single window.
        windows: number of windows.
    """

    scaling: str
    tokens: int
    ppl: float
    ppl_unscaled: float
    percent: float
    standard_error: float | None
    windows: int


def window_losses(nll_T: NDArray[np.float64]) -> list[float]:
    """Return the mean loss of consecutive windows: of 1,024 tokens, or of fewer if that makes less than 8 windows."""
    window = max(1, min(MAX_WINDOW, len(nll_T) // _MIN_WINDOWS))
    count = len(nll_T) // window
    means: list[float] = nll_T[: count * window].reshape(count, window).mean(axis=1).tolist()
    return means


def compute_short_tax(scaling: str, tokens: int, losses: Sequence[float], unscaled: Sequence[float]) -> ShortTax:
    """Return the short tax from the mean losses of the same windows with and without a scaling, in nats.

    `tokens`: tokens that were read for either.
    """
    difference = paired_difference(losses, unscaled)
    return ShortTax(
        scaling=scaling,
        tokens=tokens,
        ppl=perplexity_of(sum(losses) / len(losses)),
        ppl_unscaled=perplexity_of(sum(unscaled) / len(unscaled)),
        percent=difference.percent,
        standard_error=difference.percent_error,
        windows=difference.count,
    )
