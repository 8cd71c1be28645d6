"""The rotation of q and k."""

from __future__ import annotations

from ropewalk.ops.angles import FixedPointFrequencies, turns
from ropewalk.ops.backends import BACKENDS, backend_for, use
from ropewalk.ops.rotation import rotate

__all__ = ["BACKENDS", "FixedPointFrequencies", "backend_for", "rotate", "turns", "use"]
