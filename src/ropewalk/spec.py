"""Specs: a named dataclass written in one line as `name:option=value,...`.

Scalings, policies and tasks are written this way on the command line and in results: `yarn:factor=4,beta_fast=16`.
A value is JSON, `none`, or a text. Options of type str are taken literally, because a file may be called 2024; a text
that contains a comma is written in double quotes, as a JSON string: `needle:text="one, two.txt"`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Collection, Mapping
from dataclasses import MISSING, Field, fields
from typing import Any, TypeVar

from ropewalk.errors import InputError, UnknownNameError

T = TypeVar("T")
_KEY = re.compile(r'\s*([^=,"\[]+?)\s*=')
_TEXT_TYPES = ("str", "str | None")  # the annotations of options that are texts
_JSON = json.JSONDecoder()


def parse_spec(spec: str, find_class: Callable[[str], type[T]]) -> T:
    """Create the instance of a dataclass that a spec describes.

    The first value may omit its option if the class has a `positional` option, as in `needle:book.txt`.

    Args:
        spec: `name:option=value,...`.
        find_class: returns the class with a name, or raises an error.

    Raises InputError for an option without a value and for one that occurs twice, and what `build_from_options` raises.
    """
    name, _, text = spec.strip().partition(":")
    cls: Any = find_class(name)
    types = {f.name: f.type for f in fields(cls)}
    options: dict[str, Any] = {}
    position = 0
    while position < len(text):
        match = _KEY.match(text, position)
        key = match[1] if match else (getattr(cls, "positional", "") if position == 0 else "")
        value, position = _parse_value(text, match.end() if match else position, types.get(key))
        if value == "" and not match:  # nothing between two commas
            continue
        if not key:
            hint = "a text that contains a comma needs double quotes" if isinstance(value, str) else ""
            raise InputError(f"{name}: option", value, "option=value", hint)
        if key in options:
            raise InputError(f"{name}: option", key, "each option once")
        options[key] = value
    instance: T = build_from_options(cls, options)
    return instance


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


def format_spec(instance: Any, shown: Collection[str] | None = None) -> str:
    """Return the spec of a dataclass instance that has a `name`, without the options that have their default value.

    `shown`: the options to show; by default all.
    """
    options = [
        f"{f.name}={_format_value(value, f.type)}"
        for f, value in _non_default_fields(instance)
        if shown is None or f.name in shown
    ]
    return str(instance.name) + (":" + ",".join(options) if options else "")


def non_default_options(instance: Any) -> dict[str, Any]:
    """Return the fields of a dataclass instance whose values differ from their defaults, or that have no default."""
    return {f.name: value for f, value in _non_default_fields(instance)}


def _non_default_fields(instance: Any) -> list[tuple[Field[Any], Any]]:
    values = [(f, getattr(instance, f.name)) for f in fields(instance)]
    return [(f, value) for f, value in values if value != f.default]


def _parse_value(text: str, start: int, option_type: Any) -> tuple[Any, int]:
    """Return the value that begins at an index, and the index of the next option.

    `option_type`: the type of the option, as it is annotated; None if unknown.
    """
    start = len(text) - len(text[start:].lstrip())
    is_text = option_type in _TEXT_TYPES
    if text.startswith('"' if is_text else ('"', "["), start):
        try:
            value, end = _JSON.raw_decode(text, start)
        except (ValueError, RecursionError):
            pass
        else:
            rest = text[end:].lstrip()
            if not rest or rest[0] == ",":
                return value, len(text) - len(rest[1:])
    plain, _, rest = text[start:].partition(",")
    return _parse_plain_value(plain.strip(), option_type), len(text) - len(rest)


def _parse_plain_value(text: str, option_type: Any) -> Any:
    if option_type == "str":
        return text
    if text.lower() == "none":
        return None
    if option_type in _TEXT_TYPES:
        return text
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return text


def _format_value(value: object, option_type: Any = None) -> str:
    if isinstance(value, str):
        is_plain = _parse_value(value, 0, option_type) == (value, len(value))
        return value if is_plain else json.dumps(value, ensure_ascii=False)
    if isinstance(value, tuple):
        return "[" + ",".join(_format_value(item) for item in value) + "]"
    if isinstance(value, float) and value.is_integer() and abs(value) < 1e15:
        return str(int(value))
    return str(value).lower() if isinstance(value, bool) else str(value)
