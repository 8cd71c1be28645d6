"""Examine a configuration with all checks and report what they find."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from typing import Any

from ropewalk.errors import IncompleteConfigError, InputError, UnsupportedModelError
from ropewalk.serving.doctor.checks.engines import summarize_engines
from ropewalk.serving.doctor.examined_config import ExaminedConfig
from ropewalk.serving.doctor.fault_kinds import FAULT_KINDS, Fault, FaultKind, Faults
from ropewalk.serving.doctor.findings import Finding, make_finding


@dataclasses.dataclass(frozen=True)
class Report:
    """Result of `examine`.

    Attributes:
        model: name of the model.
        engine: name of the engine that it was examined for; "" for none.
        findings: the findings, wrong ones first.
        engines: without a named engine, each engine that interprets the configuration differently, and how.
    """

    model: str
    engine: str
    findings: tuple[Finding, ...]
    engines: Mapping[str, str]

    @property
    def is_wrong(self) -> bool:
        """Whether a finding is wrong, and not only suspicious."""
        return any(finding.severity == "wrong" for finding in self.findings)

    def to_dict(self) -> dict[str, Any]:
        """Return a dict that can be written as JSON."""
        return dataclasses.asdict(self) | {"engine": self.engine or None}


def examine(config: ExaminedConfig) -> Report:
    """Run all checks on a configuration.

    Raises InputError for an unknown engine, and for a configuration that cannot be examined: one without rope fields or
    a rotary embedding, one that does not determine the size of a head, one of an image model, and one that is nested
    too deep.
    """
    try:
        if config.is_image_model:
            raise UnsupportedModelError(config.model_type, "it rotates by positions in an image, not in a text")
        if isinstance(config.interpretation, UnsupportedModelError):
            raise config.interpretation
        findings = _run_checks(config, FAULT_KINDS.values())
        if not any(finding.severity == "wrong" for finding in findings):
            findings += _run_checks(config, [UNREADABLE])
        engines = {} if config.engine else summarize_engines(config)
    except RecursionError:
        raise InputError("model", config.name or "a configuration", "one that is nested less deep") from None
    findings.sort(key=lambda finding: finding.severity == "suspicious")
    return Report(config.name, config.engine, tuple(findings), engines)


def _run_checks(config: ExaminedConfig, kinds: Iterable[FaultKind]) -> list[Finding]:
    faults = [(kind, fault) for kind in kinds for fault in kind.find_faults(config)]
    findings = []
    for kind, fault in faults:
        other_fixes = {path: value for _, other in faults if other is not fault for path, value in other.fix.items()}
        findings.append(make_finding(config, kind, fault, other_fixes))
    return findings


def _unreadable(config: ExaminedConfig) -> Faults:
    """Transformers or llama.cpp refuses the configuration for a reason that no other check finds."""
    error = config.interpretation
    if isinstance(error, IncompleteConfigError):
        raise error
    if isinstance(error, InputError):
        yield Fault((error.field,), None, str(error))


UNREADABLE = FaultKind("unreadable", "wrong", "any", _unreadable)  # not in FAULT_KINDS: checked after all others
