"""Checks of the fields of a JSON object that comes from a file, which may be damaged or written by another program."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from ropewalk.errors import InputError

_MAX_COUNT = 2**53  # larger integers are no exact floats
_MAX_SHOWN = 100  # characters of a wrong value


def check_fields(document: Any, checks: Mapping[str, Callable[[Any], bool]]) -> dict[str, Any]:
    """Return the document. Raises ValueError, which names the field, unless it is an object whose fields pass.

    `checks`: for each required field, whether a value is valid. Further fields are allowed.
    """
    if not isinstance(document, dict):
        raise ValueError("not a JSON object")
    for name, is_valid in checks.items():
        if name not in document:
            raise ValueError(f"no field {name}")
        if not is_valid(document[name]):
            raise ValueError(f"{name} is {str(document[name])[:_MAX_SHOWN]}")
    return document


@contextmanager
def input_error_for_fields(field: str, expected: str) -> Iterator[None]:
    """Within the block, a ValueError, as of `check_fields`, becomes an InputError about what the user named."""
    try:
        yield
    except ValueError as error:
        raise InputError(field, str(error), expected) from None


def describe_difference(name: str, stored: object, now: object) -> str:
    """Return why results belong to another run: a field whose stored value differs from the present one."""
    return f"it is of another run: {name} {repr(stored)[:_MAX_SHOWN]}, now {repr(now)[:_MAX_SHOWN]}"


def is_text(value: Any) -> bool:
    """Return whether the value is a string."""
    return isinstance(value, str)


def is_optional_text(value: Any) -> bool:
    """Return whether the value is a string or null."""
    return value is None or is_text(value)


def is_list_of_texts(value: Any) -> bool:
    """Return whether the value is a list of strings."""
    return isinstance(value, list) and all(map(is_text, value))


def is_list_of_numbers(value: Any) -> bool:
    """Return whether the value is a list of numbers."""
    return isinstance(value, list) and all(map(is_number, value))


def is_object(value: Any) -> bool:
    """Return whether the value is a JSON object."""
    return isinstance(value, dict)


def is_object_of_texts(value: Any) -> bool:
    """Return whether the value is a JSON object whose values are strings."""
    return isinstance(value, dict) and all(map(is_text, value.values()))


def is_object_of_numbers(value: Any) -> bool:
    """Return whether the value is a JSON object whose values are numbers."""
    return isinstance(value, dict) and all(map(is_number, value.values()))


def is_count(value: Any) -> bool:
    """Return whether the value is an integer from 0 to 2^53."""
    return type(value) is int and 0 <= value <= _MAX_COUNT


def is_positive_count(value: Any) -> bool:
    """Return whether the value is an integer from 1 to 2^53."""
    return is_count(value) and value > 0


def is_number(value: Any) -> bool:
    """Return whether the value is a float, which may be infinite or NaN, or an integer up to 2^53."""
    return type(value) is float or (type(value) is int and abs(value) <= _MAX_COUNT)
