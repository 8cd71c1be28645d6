"""Registries of classes: a class is registered by being defined in the right package.

The packages scaling, positions, tuning, ops.backends, evaluate.tasks and serving.engines each have one abstract base
class. Adding a file with a concrete subclass to the package is enough to register it under its `name`.
"""

from __future__ import annotations

import importlib
import inspect
import pkgutil
from collections.abc import Iterable, Mapping
from typing import Any, TypeVar

from ropewalk.errors import UnknownNameError

T = TypeVar("T")


def discover_subclasses(package: str, path: Iterable[str], base: type[T]) -> dict[str, type[T]]:
    """Import every module of a package and return its concrete subclasses of `base` by their `name`, sorted.

    Args:
        package: the package's `__name__`.
        path: the package's `__path__`.
        base: the abstract base class.
    """
    for module in pkgutil.iter_modules(path):
        importlib.import_module(f"{package}.{module.name}")
    return {cls.name: cls for cls in sorted(_concrete_subclasses(base), key=lambda cls: str(cls.name))}


def find_by_name(kind: str, name: object, by_name: Mapping[str, T], listed: Iterable[str] | None = None) -> T:
    """Return the entry with that name, ignoring case and the difference between `-` and `_`.

    Args:
        kind: what the entries are, for the error message.
        name: the name to look up.
        by_name: the entries by every accepted name, aliases included.
        listed: the names that the error message lists; by default all.

    Raises UnknownNameError.
    """
    key = str(name).strip().lower().replace("_", "-")
    if key not in by_name:
        raise UnknownNameError(kind, name, by_name, ", ".join(by_name if listed is None else listed))
    return by_name[key]


def _concrete_subclasses(cls: Any) -> list[Any]:
    """Return the class itself, unless it is abstract, and all its concrete subclasses."""
    classes = [] if inspect.isabstract(cls) else [cls]
    for subclass in cls.__subclasses__():
        classes += _concrete_subclasses(subclass)
    return classes
