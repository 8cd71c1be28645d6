"""Specs: a named dataclass written in one line as `name:option=value,...`.

Scalings, policies and tasks are written this way on the command line and in results: `yarn:factor=4,beta_fast=16`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import MISSING, fields
from typing import Any, TypeVar

from ropewalk.errors import InputError, UnknownNameError

T = TypeVar("T")


def parse_spec(spec: str) -> tuple[str, dict[str, Any]]:
    """Split a spec into its name and its options.

    Values that are valid JSON are parsed as JSON, `none` in any case becomes None, and others remain strings.
    Raises InputError for an option without a value and for one that occurs twice.
    """
    name, _, text = spec.strip().partition(":")
    options: dict[str, Any] = {}
    for part in _split_at_commas(text):
        key, equals, value = part.partition("=")
        key, value = key.strip(), value.strip()
        if not equals or not key:
            raise InputError(f"{name}: option", part, "option=value")
        if key in options:
            raise InputError(f"{name}: option", key, "each option once")
        try:
            options[key] = json.loads(value)
        except (ValueError, RecursionError):
            options[key] = None if value.lower() == "none" else value
    return name, options


def build_from_options(cls: type[T], options: Mapping[str, Any]) -> T:
    """Create an instance of a dataclass that has a `name` from its options.

    Raises UnknownNameError for an option that is not one of its fields, and InputError for a missing required one.
    """
    name, known = cls.name, {f.name: f for f in fields(cls)}  # type: ignore[attr-defined, arg-type]
    for option in options:
        if option not in known:
            raise UnknownNameError(f"{name}: option", option, known)
    for option, f in known.items():
        if f.default is MISSING and option not in options:
            raise InputError(f"{name}: {option}", None, f"a value, as in {name}:{option}=...")
    return cls(**options)


def format_spec(instance: Any) -> str:
    """Return the spec of a dataclass instance that has a `name`, without the options that have their default value."""
    options = [f"{option}={_format_value(value)}" for option, value in non_default_options(instance).items()]
    return str(instance.name) + (":" + ",".join(options) if options else "")


def non_default_options(instance: Any) -> dict[str, Any]:
    """Return the fields of a dataclass instance whose values differ from their defaults, or that have no default."""
    return {f.name: getattr(instance, f.name) for f in fields(instance) if getattr(instance, f.name) != f.default}


def _split_at_commas(text: str) -> list[str]:
    """Split at commas outside of brackets, and drop empty parts."""
    parts, depth = [""], 0
    for character in text:
        depth += {"[": 1, "]": -1}.get(character, 0)
        if character == "," and depth == 0:
            parts.append("")
        else:
            parts[-1] += character
    return [part for part in parts if part.strip()]


def _format_value(value: object) -> str:
    if isinstance(value, tuple):
        return "[" + ",".join(_format_value(item) for item in value) + "]"
    if isinstance(value, float) and value.is_integer() and abs(value) < 1e15:
        return str(int(value))
    return str(value).lower() if isinstance(value, bool) else str(value)
