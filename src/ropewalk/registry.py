"""Registries: what stands in a folder, one file an idea, is known by its name."""

from __future__ import annotations

import importlib
import inspect
import pkgutil
from collections.abc import Iterable
from typing import Any, TypeVar

T = TypeVar("T")


def registered(package: str, path: Iterable[str], base: type[T]) -> dict[str, type[T]]:
    """Import every module of the package; its concrete subclasses of `base`, by their `name`, in its order."""
    for module in pkgutil.iter_modules(path):
        importlib.import_module(f"{package}.{module.name}")
    return {cls.name: cls for cls in sorted(_concrete(base), key=lambda cls: str(cls.name))}


def _concrete(cls: Any) -> list[Any]:
    below = [found for subclass in cls.__subclasses__() for found in _concrete(subclass)]
    return below if inspect.isabstract(cls) else [cls, *below]
