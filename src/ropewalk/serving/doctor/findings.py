"""Findings: faults with their effect on the rotation, and with a fix or a question."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ropewalk.serving.doctor.checked_changes import is_mended, is_readable
from ropewalk.serving.doctor.examined_config import TOKENIZER_CONFIG, ExaminedConfig, KeyPath
from ropewalk.serving.doctor.fault_kinds import Fault, FaultKind, Severity
from ropewalk.serving.doctor.rotations import compare_rotations, compute_scaled_length

_DEFAULT_QUESTION = "Which value was the model trained with? Neither the file nor a published model tells"


@dataclass(frozen=True)
class SuggestedAnswer:
    """A possible answer to the question of a finding, with what it means in tokens.

    Attributes:
        answer: the answer.
        means: the length that the configuration is then made for.
        fix: the fields to write for it, null to remove one; empty to leave the file as it is.
    """

    answer: str
    means: str
    fix: Mapping[str, Any]


@dataclass(frozen=True)
class Finding:
    """A fault with its kind and its effect on the rotation. The fields are keys of the JSON report.

    Attributes:
        kind: name of the kind of fault.
        severity: "wrong" or "suspicious".
        field: the field that is at fault, with dots between the keys.
        found: its value.
        means: what is wrong and what happens because of it.
        fix: new values of fields, null to remove one. It was applied and the result was examined: the finding is gone,
            and nothing else is wrong. Empty if the right values are unknown.
        question: what the user must answer; "" if there is a fix.
        alternatives: the answers that are likely; those that reach the target come first.
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
    question: str = ""
    alternatives: tuple[SuggestedAnswer, ...] = ()
    position: int | None = None
    cosine: float | None = None
    scores: float | None = None


def make_finding(config: ExaminedConfig, kind: FaultKind, fault: Fault, other_fixes: Mapping[KeyPath, Any]) -> Finding:
    """Return the finding for a fault of this kind, with the actual rotation compared to the expected one.

    Args:
        config: the configuration.
        kind: the kind of the fault.
        fault: the fault.
        other_fixes: the fixes of the other faults, without which the configuration may be unreadable.
    """
    fix, question = fault.fix, ""
    alternatives: tuple[SuggestedAnswer, ...] = ()
    if not fix or not is_mended(config, kind, fault, fix, other_fixes):
        fix, question = {}, fault.question or _DEFAULT_QUESTION
        alternatives = tuple(_list_alternatives(config, kind, fault, other_fixes))
    actual = config.interpretation if fault.actual is None else fault.actual
    expected = fault.expected
    if expected is None:
        expected = config.with_changes(fix).interpretation if fix else actual
    difference = compare_rotations(actual, expected, config.target) or (None, None, None)
    return Finding(
        kind=kind.name,
        severity=kind.severity,
        field=format_path(fault.path),
        found=fault.found,
        means=fault.means,
        fix=_format_changes(fix),
        question=question,
        alternatives=alternatives,
        position=difference[0],
        cosine=difference[1],
        scores=difference[2],
    )


def _list_alternatives(
    config: ExaminedConfig, kind: FaultKind, fault: Fault, other_fixes: Mapping[KeyPath, Any]
) -> list[SuggestedAnswer]:
    """Return the answers that give a sound configuration; those that reach the target come first."""
    alternatives = []
    for answer in fault.answers:
        is_checked = not answer.changes or answer.is_for_one_engine
        if not is_checked and not is_mended(config, kind, fault, answer.changes, other_fixes):
            continue
        changed = config.with_changes(answer.changes)
        if not is_readable(changed):
            changed = changed.with_changes(other_fixes)
        tokens, means = describe_reach(changed)
        is_too_short = tokens is not None and config.target is not None and tokens < config.target
        alternatives.append((is_too_short, SuggestedAnswer(answer.text, means, _format_changes(answer.changes))))
    return [alternative for _, alternative in sorted(alternatives, key=lambda each: each[0])]


def describe_reach(config: ExaminedConfig) -> tuple[int | None, str]:
    """Return the length that a configuration is made for, tokens, and how it follows from its fields."""
    model_config = config.model_config
    if model_config is None:
        return None, ""
    layer, declared = model_config.main_layer, model_config.max_length
    original, tokens = layer.scaling.original_length or layer.rope.original_length, compute_scaled_length(layer)
    if not original or not tokens:
        return None, ""
    means = f"{original:,} x {tokens / original:.4g} = {tokens:,} tokens"
    if tokens == original:
        means = f"no scaling, {tokens:,} tokens"
    if declared and declared != tokens:
        means += f"; declared: {declared:,}"
    if config.target:
        means += f"; the target of {config.target:,} is {'reached' if tokens >= config.target else 'not reached'}"
    return tokens, means


def _format_changes(changes: Mapping[KeyPath, Any]) -> dict[str, Any]:
    return {format_path(path): value for path, value in changes.items()}


def format_path(path: KeyPath) -> str:
    """Return a path with dots between the keys, after the name of the file for a field of the tokenizer."""
    return f"{path[0]}: {'.'.join(path[1:])}" if path[0] == TOKENIZER_CONFIG else ".".join(path)
