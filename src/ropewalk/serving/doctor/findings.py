"""Findings: faults with their effect on the rotation, and the comparison of two rotations."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

from ropewalk import config as configs
from ropewalk.errors import InputError
from ropewalk.serving.doctor.examined_config import TOKENIZER_CONFIG, ExaminedConfig, Interpretation, Path
from ropewalk.serving.doctor.fault_kinds import Fault, FaultKind, Severity

MAX_COMPARED_POSITION = 65_536  # rotations are compared at this position, or at the target or declared length if less


@dataclass(frozen=True)
class Finding:
    """A fault with its kind and its effect on the rotation. The fields are keys of the JSON report.

    Attributes:
        kind: name of the kind of fault.
        severity: "wrong" or "suspicious".
        field: the field that is at fault, with dots between the keys.
        found: its value.
        means: what is wrong and what happens because of it.
        fix: new values of fields, null to remove one.
        position: tokens; where the rotations are compared. None if the fault does not change the rotation, or if the
            configuration is refused before or after the fix.
        cosine: cosine similarity between vectors rotated by the actual and by the expected frequencies.
        scores: attention scores, actual over expected: squared attention factors times softmax factors.
    """

    kind: str
    severity: Severity
    field: str
    found: Any
    means: str
    fix: Mapping[str, Any]
    position: int | None = None
    cosine: float | None = None
    scores: float | None = None


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


def make_finding(config: ExaminedConfig, kind: FaultKind, fault: Fault) -> Finding:
    """Return the finding for a fault of this kind, with the actual rotation compared to the expected one."""
    actual = config.interpretation if fault.actual is None else fault.actual
    expected = config.with_changes(fault.fix).interpretation if fault.expected is None else fault.expected
    fix = {format_path(path): value for path, value in fault.fix.items()}
    difference = compare_rotations(actual, expected, config.target) or ()
    return Finding(kind.name, kind.severity, format_path(fault.path), fault.found, fault.means, fix, *difference)


def format_path(path: Path) -> str:
    """Return a path with dots between the keys, after the name of the file for a field of the tokenizer."""
    return f"{path[0]}: {'.'.join(path[1:])}" if path[0] == TOKENIZER_CONFIG else ".".join(path)


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
    position = min(MAX_COMPARED_POSITION, target or expected.max_length or MAX_COMPARED_POSITION)
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
