"""The position methods, one file for each, and `parse`, which reads them and the scalings.

Every concrete `PositionMethod` in this package is registered under its name; see `ropewalk.registry`.
"""

from __future__ import annotations

from ropewalk.positions.base import FarSegment, PositionMethod
from ropewalk.registry import discover_subclasses

REGISTRY: dict[str, type[PositionMethod]] = discover_subclasses(__name__, __path__, PositionMethod)  # type: ignore[type-abstract]
__all__ = ["REGISTRY", "FarSegment", "PositionMethod"]
