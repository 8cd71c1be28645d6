"""Registry of the kinds of fault. A check is a generator of faults, registered under the name of its kind:

    @fault_kind("beta-order", "wrong")
    @for_each_rope_dict("yarn")
    def beta_order(config: ExaminedConfig, rope_dict: RopeDict) -> Iterator[Fault]:
        \"""`beta_fast` is smaller than `beta_slow`.\"""

The docstring is the description of the kind in docs/doctor.md.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal, TypeAlias

from ropewalk.serving.doctor.examined_config import ExaminedConfig, RopeDict
from ropewalk.serving.doctor.findings import Fault, Severity

Check: TypeAlias = Callable[[ExaminedConfig], Iterator[Fault]]
RopeDictCheck: TypeAlias = Callable[[ExaminedConfig, RopeDict], Iterator[Fault]]
FileFormat = Literal["config", "gguf", "any"]


@dataclass(frozen=True)
class FaultKind:
    """A kind of fault and the check that finds it.

    Attributes:
        name: name in reports.
        severity: "wrong" or "suspicious".
        applies_to: "config" for config.json, "gguf" for GGUF files, "any" for both.
        check: the check.
    """

    name: str
    severity: Severity
    applies_to: FileFormat
    check: Check

    @property
    def description(self) -> str:
        """The docstring of the check."""
        return self.check.__doc__ or ""

    def find_faults(self, config: ExaminedConfig) -> Iterator[Fault]:
        """Yield the faults of this kind; none if the check is for the other file format."""
        if self.applies_to in ("any", "gguf" if config.is_gguf else "config"):
            yield from self.check(config)


FAULT_KINDS: dict[str, FaultKind] = {}


def fault_kind(name: str, severity: Severity, applies_to: FileFormat = "config") -> Callable[[Check], Check]:
    """Return a decorator that registers a check."""

    def register(check: Check) -> Check:
        FAULT_KINDS[name] = FaultKind(name, severity, applies_to, check)
        return check

    return register


def for_each_rope_dict(*methods: str) -> Callable[[RopeDictCheck], Check]:
    """Return a decorator that runs a check for each rope dict with one of these methods; by default for all."""

    def decorate(check: RopeDictCheck) -> Check:
        @functools.wraps(check)
        def check_all(config: ExaminedConfig) -> Iterator[Fault]:
            for rope_dict in config.rope_dicts:
                if not methods or rope_dict.method in methods:
                    yield from check(config, rope_dict)

        return check_all

    return decorate
