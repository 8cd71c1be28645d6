"""Specs: how a method and its options are written in one line, `name:option=value,...`."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import MISSING, fields
from typing import Any, TypeVar

from ropewalk.errors import InputError, UnknownNameError

T = TypeVar("T")


def read_spec(spec: str) -> tuple[str, dict[str, Any]]:
    """The name and the options of a spec; values are read as JSON where they are JSON.

    Raises InputError naming the option.
    """
    name, _, text = spec.strip().partition(":")
    options: dict[str, Any] = {}
    for part in _split(text):
        key, equals, value = part.partition("=")
        if not equals or not key.strip():
            raise InputError(f"{name}: option", part, "option=value")
        if key.strip() in options:
            raise InputError(f"{name}: option", key.strip(), "each option once")
        try:
            options[key.strip()] = json.loads(value)
        except (ValueError, RecursionError):
            options[key.strip()] = None if value.strip().lower() == "none" else value.strip()
    return name, options


def build(described: type[T], options: Mapping[str, Any]) -> T:
    """An instance of the dataclass with those options. Raises InputError for an unknown or a missing one."""
    cls: Any = described
    allowed = [f.name for f in fields(cls)]
    for option in options:
        if option not in allowed:
            raise UnknownNameError(f"{cls.name}: option", option, allowed)
    for f in fields(cls):
        if f.default is MISSING and f.name not in options:
            raise InputError(f"{cls.name}: {f.name}", None, f"a value, as in {cls.name}:{f.name}=...")
    return described(**options)


def write_spec(described: Any) -> str:
    """The spec of a dataclass instance with a `name`, with the options that differ from the default."""
    options = []
    for f in fields(described):
        value = getattr(described, f.name)
        if f.default is MISSING or value != f.default:
            options.append(f"{f.name}={_written(value)}")
    return str(described.name) + (":" + ",".join(options) if options else "")


def _split(text: str) -> list[str]:
    """`text` at the commas that stand in no list."""
    parts, depth = [""], 0
    for character in text:
        depth += {"[": 1, "]": -1}.get(character, 0)
        if character == "," and depth == 0:
            parts.append("")
        else:
            parts[-1] += character
    return [part for part in parts if part.strip()]


def _written(value: object) -> str:
    if isinstance(value, tuple):
        return "[" + ",".join(_written(item) for item in value) + "]"
    if isinstance(value, float) and math.isfinite(value) and abs(value) < 1e15 and value == int(value):
        return str(int(value))
    return str(value).lower() if isinstance(value, bool) else str(value)
