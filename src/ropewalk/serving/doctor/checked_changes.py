"""Check changes of a configuration by reading the result again.

A fix is offered only if its result was examined.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from ropewalk.errors import InputError
from ropewalk.serving.doctor.examined_config import ExaminedConfig, KeyPath
from ropewalk.serving.doctor.fault_kinds import FAULT_KINDS, Fault, FaultKind
from ropewalk.serving.doctor.rotations import is_same_rotation


def is_mended(
    config: ExaminedConfig,
    kind: FaultKind,
    fault: Fault,
    changes: Mapping[KeyPath, Any],
    other_fixes: Mapping[KeyPath, Any],
) -> bool:
    """Return whether changes remove a fault, leave a readable configuration and cause no other wrong finding.

    If the fault has an expected rotation, the result must have it.

    Args:
        config: the configuration with the fault.
        kind: the kind of the fault.
        fault: the fault.
        changes: the changes to check.
        other_fixes: the fixes of the other faults. They may be needed to make the result readable.
    """
    if not kind.depends_on_engine:
        config = dataclasses.replace(config, engine="")  # what an engine makes of the result is another finding
    changed = config.with_changes(changes)
    if any(other.path == fault.path for other in kind.find_faults(changed)):
        return False
    if not is_readable(changed):
        if is_readable(config) or not is_readable(changed.with_changes(other_fixes)):
            return False
    elif fault.expected is not None and not is_same_rotation(changed.interpretation, fault.expected, config.target):
        return False
    return _find_wrong(changed) <= _find_wrong(config)


def is_readable(config: ExaminedConfig) -> bool:
    """Return whether transformers (for a GGUF file: llama.cpp) reads the configuration."""
    return not isinstance(config.interpretation, InputError)


def _find_wrong(config: ExaminedConfig) -> set[tuple[str, KeyPath]]:
    """Return kind and path of each fault that is wrong."""
    wrong = (kind for kind in FAULT_KINDS.values() if kind.severity == "wrong")
    return {(kind.name, fault.path) for kind in wrong for fault in kind.find_faults(config)}
