"""Faults, and the registry of their kinds. A check is a generator of faults, registered under the name of its kind:

    @fault_kind("beta-order", "wrong")
    @for_each_rope_dict("yarn")
    def beta_order(config: ExaminedConfig, rope_dict: ExaminedRopeDict) -> Faults:
        \"""`beta_fast` is smaller than `beta_slow`.\"""

The docstring is the description of the kind in docs/doctor.md.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias

from ropewalk.serving.doctor.examined_config import ExaminedConfig, ExaminedRopeDict, Interpretation, KeyPath

Severity = Literal["wrong", "suspicious"]
FileFormat = Literal["config", "gguf", "any"]


@dataclass(frozen=True)
class Answer:
    """One answer to the question of a fault.

    Attributes:
        text: the answer, such as "the factor is 4".
        changes: the fields to write for it; None removes a field. Empty if the file stays as it is.
        is_for_one_engine: whether the changes are right for the named engine, but not for transformers, so that the
            result cannot be examined as other changes are.
    """

    text: str
    changes: Mapping[KeyPath, Any] = field(default_factory=dict)
    is_for_one_engine: bool = False


@dataclass(frozen=True)
class Fault:
    """What a check reports.

    A fix must follow from the file or from the published model. What is only likely is an answer to a question.

    Attributes:
        path: the field that is at fault.
        found: its value.
        means: what is wrong and what happens because of it, as one sentence.
        fix: new values of fields; None removes a field. Empty if the right values are unknown.
        question: what the user must answer if there is no fix.
        answers: the answers that are likely.
        actual: how the configuration is interpreted; by default `config.interpretation`.
        expected: how it should be interpreted; by default the interpretation after the fix.
    """

    path: KeyPath
    found: Any
    means: str
    fix: Mapping[KeyPath, Any] = field(default_factory=dict)
    question: str = ""
    answers: tuple[Answer, ...] = ()
    actual: Interpretation | None = None
    expected: Interpretation | None = None


Faults: TypeAlias = Iterator[Fault]
Check: TypeAlias = Callable[[ExaminedConfig], Faults]
RopeDictCheck: TypeAlias = Callable[[ExaminedConfig, ExaminedRopeDict], Faults]


@dataclass(frozen=True)
class FaultKind:
    """A kind of fault and the check that finds it.

    Attributes:
        name: name in reports.
        severity: "wrong" or "suspicious".
        applies_to: "config" for config.json, "gguf" for GGUF files, "any" for both.
        check: the check.
        depends_on_engine: whether the check is about the engine that the user named.
    """

    name: str
    severity: Severity
    applies_to: FileFormat
    check: Check
    depends_on_engine: bool = False

    @property
    def description(self) -> str:
        """The docstring of the check."""
        return self.check.__doc__ or ""

    def find_faults(self, config: ExaminedConfig) -> Faults:
        """Yield the faults of this kind; none if the check is for the other file format."""
        if self.applies_to in ("any", "gguf" if config.is_gguf else "config"):
            yield from self.check(config)


FAULT_KINDS: dict[str, FaultKind] = {}


def fault_kind(
    name: str, severity: Severity, applies_to: FileFormat = "config", *, depends_on_engine: bool = False
) -> Callable[[Check], Check]:
    """Return a decorator that registers a check in `FAULT_KINDS`. The arguments are the attributes of `FaultKind`."""

    def register(check: Check) -> Check:
        FAULT_KINDS[name] = FaultKind(name, severity, applies_to, check, depends_on_engine)
        return check

    return register


def for_each_rope_dict(*methods: str) -> Callable[[RopeDictCheck], Check]:
    """Return a decorator that runs a check for each rope dict with one of these methods; by default for all."""

    def decorate(check: RopeDictCheck) -> Check:
        @functools.wraps(check)
        def check_all(config: ExaminedConfig) -> Faults:
            for rope_dict in config.rope_dicts:
                if not methods or rope_dict.method in methods:
                    yield from check(config, rope_dict)

        return check_all

    return decorate
