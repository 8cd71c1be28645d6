"""The data of the circles and of the strips: how fast each pair rotates under each scaling."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ropewalk.config import compute_layer_frequencies
from ropewalk.frequencies import Frequencies
from ropewalk.report.explain.subject import Subject
from ropewalk.scaling import Scaling

_TOLERANCE = 1e-6  # relative difference below which two divisors count as equal
# Rotations over L of the slow pair of the opening picture: a quarter of its circle was trained.
_SLOW_PAIR_ROTATIONS = 0.25
_FAST_PAIR_ROTATIONS = 32.0  # and of the fast pair: YaRN's beta_fast, the slowest pair it leaves as it is
BANDS = ("untouched", "ramp", "interpolated")


def build_rotations(subject: Subject) -> dict[str, Any]:
    """Return the data of all pairs: of the model itself, and under each scaling.

    A static scaling has one list per key, a dynamic one a list for each stop of the length. Turns are per token. A
    divisor is the unscaled frequency over the scaled one; null if the pair stands still.
    """
    rope = subject.layer.rope
    rotations = rope.rotations(subject.original_length)
    return {
        "stops": subject.stops,
        "wavelengths": rope.wavelengths.tolist(),
        "rotations": rotations.tolist(),
        "critical": int((rotations >= 1).sum()),
        "fast": choose_fast_pair(rotations),
        "slow": choose_slow_pair(rotations),
        "methods": [
            {"label": label, **_describe_method(subject, scaling)}
            for label, scaling in zip(subject.labels, subject.scalings, strict=True)
        ],
    }


def choose_slow_pair(rotations: NDArray[np.float64]) -> int:
    """Return the pair that best shows angles that training did not cover.

    `rotations`: of each pair over the original length, [dim/2].
    """
    return int(np.abs(np.log(rotations / _SLOW_PAIR_ROTATIONS)).argmin())


def choose_fast_pair(rotations: NDArray[np.float64]) -> int:
    """Return the slowest pair with at least 32 rotations, or the fastest pair. `rotations`: [dim/2]."""
    return max(int((rotations >= _FAST_PAIR_ROTATIONS).sum()) - 1, 0)


def compute_divisors(subject: Subject, scaled: Frequencies) -> NDArray[np.float64]:
    """Return by how much each pair is slowed down, [dim/2]; infinite for one that stands still."""
    with np.errstate(divide="ignore"):
        divisors: NDArray[np.float64] = subject.layer.rope.inv_freq / scaled.inv_freq
    return divisors


def assign_bands(divisors: NDArray[np.float64], factor: float) -> list[str]:
    """Return the band of each pair: untouched, interpolated (divided by the whole factor), or ramp for all others.

    Args:
        divisors: [dim/2].
        factor: the factor of the scaling; 1 for a scaling without one, whose largest divisor counts.
    """
    whole = factor if factor > 1 else float(divisors.max())
    is_untouched = np.abs(divisors - 1) < _TOLERANCE
    is_interpolated = (divisors >= whole * (1 - _TOLERANCE)) & ~is_untouched
    return [BANDS[0] if untouched else BANDS[2] if whole else BANDS[1]
            for untouched, whole in zip(is_untouched, is_interpolated, strict=True)]  # fmt: skip


def _describe_method(subject: Subject, scaling: Scaling) -> dict[str, Any]:
    layer, stops = subject.layer, subject.stops if scaling.is_dynamic else [subject.target]
    by_stop = [compute_layer_frequencies(scaling, layer, stop) for stop in stops]
    divisors = [compute_divisors(subject, scaled) for scaled in by_stop]
    factors = [scaling.extension_factor(layer.rope, stop) for stop in stops]
    return {
        "turns": [_round(scaled.inv_freq / (2 * math.pi), 12) for scaled in by_stop],
        "divisors": [_round(each, 6) for each in divisors],
        "bands": ["".join(band[0] for band in assign_bands(*pair)) for pair in zip(divisors, factors, strict=True)],
        "attention": [scaled.attention_factor for scaled in by_stop],
    }


def _round(values: NDArray[np.float64], digits: int) -> list[float | None]:
    """Return the numbers with that many significant digits, which keeps the page small; None for infinity."""
    return [float(f"{value:.{digits}g}") if math.isfinite(value) else None for value in values]
