"""Compare two rotations: what a reader computes, and what it should compute."""

from __future__ import annotations

from typing import NamedTuple

from ropewalk import config as configs
from ropewalk.config import LayerRope
from ropewalk.errors import InputError
from ropewalk.serving.doctor.examined_config import Interpretation

MAX_COMPARED_POSITION = 65_536  # rotations are compared at this position, or at the target or declared length if less
_TOLERANCE = 1e-6  # of cosine and score ratio, for rotations that are equal but for rounding


class RotationDifference(NamedTuple):
    """How two rotations differ.

    Attributes:
        position: where they are compared, tokens.
        cosine: cosine similarity between rotated vectors; 1 for equal frequencies.
        score_ratio: ratio of the attention scores.
    """

    position: int
    cosine: float
    score_ratio: float

    @property
    def is_rounding(self) -> bool:
        """Whether the difference is only that of rounding."""
        return self.cosine > 1 - _TOLERANCE and abs(self.score_ratio - 1) < _TOLERANCE


def compare_rotations(
    actual: Interpretation, expected: Interpretation, target: int | None
) -> RotationDifference | None:
    """Compare two rotations of the first layer type in which they differ; layers that attend to the whole text first.

    Args:
        actual: one interpretation.
        expected: the other one.
        target: tokens; upper limit of the position.

    Returns None if the rotations are equal or cannot be compared.
    """
    if isinstance(actual, InputError) or isinstance(expected, InputError):
        return None
    made_for = expected.max_length or MAX_COMPARED_POSITION
    if expected.main_layer.scaling.is_dynamic:
        made_for = max(made_for, compute_scaled_length(expected.main_layer) or 0)
    position = min(MAX_COMPARED_POSITION, target or made_for)
    for layer_type in sorted(expected.ropes, key=configs.is_local):
        if layer_type not in actual.ropes:
            return None
        layers = (actual.ropes[layer_type], expected.ropes[layer_type])
        try:
            left, right = (configs.compute_layer_frequencies(layer.scaling, layer, position) for layer in layers)
        except InputError:
            return None
        if left.inv_freq.shape != right.inv_freq.shape:
            return None
        if left != right:
            attention_ratio = (left.attention_factor / right.attention_factor) ** 2
            score_ratio = attention_ratio * left.softmax_factor / right.softmax_factor
            return RotationDifference(position, float(left.cosine_similarity(right, position)), score_ratio)
    return None


def is_same_rotation(actual: Interpretation, expected: Interpretation, target: int | None) -> bool:
    """Return whether both are readable and rotate alike, up to rounding, in every layer type."""
    if isinstance(actual, InputError) or isinstance(expected, InputError):
        return False
    if set(actual.ropes) != set(expected.ropes):
        return False
    if any(actual.ropes[layer_type].rope.dim != layer.rope.dim for layer_type, layer in expected.ropes.items()):
        return False
    difference = compare_rotations(actual, expected, target)
    return difference is None or difference.is_rounding


def compute_scaled_length(layer: LayerRope) -> int | None:
    """Return the length that a layer is made for, tokens: the original length times the factor, also of a dynamic one.

    None if the original length is unknown.
    """
    original = layer.scaling.original_length or layer.rope.original_length
    factor = layer.scaling.extension_factor(layer.rope)
    if layer.scaling.is_dynamic:
        factor = max(factor, getattr(layer.scaling, "factor", None) or 1.0)
    return round(original * factor) if original else None
