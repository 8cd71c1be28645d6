"""The data of what attention sees: scores against distance, the effect of the temperature, and stale keys."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ropewalk.config import compute_layer_frequencies
from ropewalk.frequencies import MAX_POSITION, Frequencies
from ropewalk.report.explain.subject import Subject

_POINTS_PER_OCTAVE = 6
_WINDOW = 2**0.25  # scores are averaged over the distances from d to d times this
_MAX_SAMPLES = 24  # distances in one window
_STALE_POSITIONS = 97


def build_scores(subject: Subject) -> dict[str, Any]:
    """Return the expected attention score against distance, for each scaling at the target length.

    It is the score of a query and a key that agree in every pair of channels, relative to that of the unscaled model
    at distance 0: the mean over the pairs of cos(distance x theta_i), times the squared attention factor and the
    softmax factor. Each value is the mean over a window of distances, from d to 1.19 d.
    """
    octaves = math.log2(max(subject.target, 2 * subject.original_length))
    distances = np.unique(np.logspace(0, octaves, round(octaves * _POINTS_PER_OCTAVE) + 1, base=2).round().astype(int))
    steps = np.linspace(1, _WINDOW, _MAX_SAMPLES)
    windows = np.minimum((distances[:, None] * steps).round(), MAX_POSITION).astype(np.int64)
    lines = [expected_scores(_at_target(subject, index), windows).mean(axis=-1) for index in _indices(subject)]
    return {"x": distances.tolist(), "lines": [_round(line, 4) for line in lines]}


def expected_scores(scaled: Frequencies, distances: NDArray[np.int64]) -> NDArray[np.float64]:
    """Return the expected attention score at each distance, of the same shape; see `build_scores`."""
    still = Frequencies(np.zeros_like(scaled.inv_freq))
    return scaled.cosine_similarity(still, distances) * sharpness(scaled)


def sharpness(scaled: Frequencies) -> float:
    """Return what attention scores are multiplied by: the squared attention factor times the softmax factor."""
    return scaled.attention_factor**2 * scaled.softmax_factor


def attention_share(advantage: float, tokens: int, scores_factor: float = 1.0) -> float:
    """Return the share of attention of one key whose score exceeds all others, which are equal.

    Args:
        advantage: by how much it exceeds them, before the factor.
        tokens: how many keys there are.
        scores_factor: multiplies the scores.
    """
    return 1 / (1 + (tokens - 1) * math.exp(-advantage * scores_factor))


def build_temperatures(subject: Subject) -> list[dict[str, Any]]:
    """Return each scaling's factors at the target, and the share of a key that has half of the attention at L."""
    rows = []
    advantage = math.log(subject.original_length - 1 or 1)
    for index in _indices(subject):
        scaled = _at_target(subject, index)
        rows.append(
            {
                "label": subject.labels[index],
                "attention_factor": scaled.attention_factor,
                "sharpness": sharpness(scaled),
                "share": attention_share(advantage, subject.target, sharpness(scaled)),
            }
        )
    return rows


def build_stale_keys(subject: Subject) -> dict[str, Any]:
    """Return the error of the angles of cached keys, in degrees, against their position.

    The keys were rotated by the unscaled frequencies while the text was short; then the scaling for the target took
    over. The error of one pair is position x (theta_i - theta'_i), between 0 and 180 degrees; the data has the mean
    over the pairs.
    """
    positions = np.linspace(0, subject.original_length - 1, _STALE_POSITIONS).astype(np.int64)
    unscaled = _at_target(subject, 0)
    lines = [stale_angles(unscaled, _at_target(subject, index), positions) for index in _indices(subject)[1:]]
    return {"x": positions.tolist(), "lines": [_round(line.mean(axis=-1), 4) for line in lines]}


def stale_angles(old: Frequencies, new: Frequencies, positions: NDArray[np.int64]) -> NDArray[np.float64]:
    """Return the angle between rotations by the old and by the new frequencies, degrees from 0 to 180, [..., dim/2]."""
    cos, sin = Frequencies(np.abs(old.inv_freq - new.inv_freq)).cos_sin(positions, "float64")
    return np.asarray(np.degrees(np.abs(np.arctan2(sin, cos))))


def _indices(subject: Subject) -> range:
    return range(len(subject.scalings))


def _at_target(subject: Subject, index: int) -> Frequencies:
    length = max(subject.target, subject.original_length)
    return compute_layer_frequencies(subject.scalings[index], subject.layer, length)


def _round(values: NDArray[np.float64], decimals: int) -> list[float]:
    rounded: list[float] = values.round(decimals).tolist()
    return rounded
