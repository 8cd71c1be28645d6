"""The serving engines, one file each, and the registry that finds them by name."""

from __future__ import annotations

from ropewalk.registry import find_by_name, registered
from ropewalk.serving.engines.base import Engine

ENGINES: dict[str, Engine] = {
    name: cls()
    for name, cls in registered(__name__, __path__, Engine).items()  # type: ignore[type-abstract]
}
__all__ = ["ENGINES", "Engine", "find_engine"]


def find_engine(name: str) -> Engine:
    """The engine of that name. Raises InputError for an unknown one."""
    return find_by_name("engine", name, ENGINES)
