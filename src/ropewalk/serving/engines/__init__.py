"""The serving engines, one file for each, and the registry that finds them by name."""

from __future__ import annotations

from ropewalk.registry import discover_subclasses, find_by_name
from ropewalk.serving.engines.base import Engine

ENGINES: dict[str, Engine] = {
    name: cls()
    for name, cls in discover_subclasses(__name__, __path__, Engine).items()  # type: ignore[type-abstract]
}
__all__ = ["ENGINES", "Engine", "find_engine"]


def find_engine(name: str) -> Engine:
    """Return the engine of that name. Raises UnknownNameError, with the nearest names, if there is none."""
    return find_by_name("engine", name, ENGINES)
