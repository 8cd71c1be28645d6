"""Find classes by the folder that defines them, and look entries up by name."""

from __future__ import annotations

import importlib
import inspect
import pkgutil
from collections.abc import Iterable, Mapping
from typing import Any, TypeVar

from ropewalk.errors import UnknownNameError

T = TypeVar("T")


def registered(package: str, path: Iterable[str], base: type[T]) -> dict[str, type[T]]:
    """Import every module of a package and return its concrete subclasses of `base`, by `name`, sorted."""
    for module in pkgutil.iter_modules(path):
        importlib.import_module(f"{package}.{module.name}")
    return {cls.name: cls for cls in sorted(_concrete(base), key=lambda cls: str(cls.name))}


def find_by_name(kind: str, name: object, by_name: Mapping[str, T], listed: Iterable[str] | None = None) -> T:
    """Return the entry of that name; upper and lower case, `-` and `_` are the same.

    Args:
        kind: what is looked up, for the error.
        by_name: every name that is accepted, aliases included.
        listed: the names that the error lists; by default all.

    Raises UnknownNameError.
    """
    key = str(name).strip().lower().replace("_", "-")
    if key not in by_name:
        raise UnknownNameError(kind, name, by_name, ", ".join(by_name if listed is None else listed))
    return by_name[key]


def _concrete(cls: Any) -> list[Any]:
    below = [found for subclass in cls.__subclasses__() for found in _concrete(subclass)]
    return below if inspect.isabstract(cls) else [cls, *below]
