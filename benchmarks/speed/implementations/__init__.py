"""The implementations that are compared, one file per project: plain copies, ropewalk, and other projects."""

from __future__ import annotations

from benchmarks.speed.implementations.base import Implementation
from ropewalk.registry import discover_subclasses

_ROLE_ORDER = ("limit", "ours", "peer")
_CLASSES = discover_subclasses(__name__, __path__, Implementation)  # type: ignore[type-abstract]
IMPLEMENTATIONS: dict[str, Implementation] = {
    name: _CLASSES[name]() for name in sorted(_CLASSES, key=lambda name: _ROLE_ORDER.index(_CLASSES[name].role))
}
__all__ = ["IMPLEMENTATIONS", "Implementation"]
