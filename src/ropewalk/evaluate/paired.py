"""The mean difference of two measurements of the same texts or questions, and how certain it is."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class PairedDifference:
    """The mean of differences between paired measurements.

    Attributes:
        mean: mean difference.
        standard_error: standard deviation of the differences (n - 1 in the denominator) over the square root of their
            number; None for fewer than two. It assumes independent pairs and says nothing about other texts.
        count: number of pairs.
    """

    mean: float
    standard_error: float | None
    count: int

    @property
    def percent(self) -> float:
        """By how much a difference of mean losses, in nats, raises the perplexity, in percent."""
        return 100 * math.expm1(self.mean)

    @property
    def percent_error(self) -> float | None:
        """The standard error of `percent`, to first order."""
        return None if self.standard_error is None else 100 * math.exp(self.mean) * self.standard_error


def paired_difference(values: Sequence[float], baseline: Sequence[float]) -> PairedDifference:
    """Return the mean of `values` minus `baseline`, pair by pair. Both have the same length, at least 1."""
    differences = [value - base for value, base in zip(values, baseline, strict=True)]
    count = len(differences)
    mean = sum(differences) / count
    if count < 2:
        return PairedDifference(mean, None, count)
    variance = sum((difference - mean) ** 2 for difference in differences) / (count - 1)
    return PairedDifference(mean, math.sqrt(variance / count), count)
