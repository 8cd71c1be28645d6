"""The serving engines, one file each, and the registry that finds them by name."""

from __future__ import annotations

from ropewalk import spec as specs
from ropewalk.engines.base import Engine
from ropewalk.registry import registered

ENGINES: dict[str, Engine] = {
    name: cls()
    for name, cls in registered(__name__, __path__, Engine).items()  # type: ignore[type-abstract]
}
__all__ = ["ENGINES", "Engine", "find"]


def find(name: str) -> Engine:
    """The engine of that name. Raises InputError for an unknown one."""
    return specs.find("engine", name, ENGINES, ENGINES)
