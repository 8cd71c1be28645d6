"""The rotation of q and k."""

from __future__ import annotations

from ropewalk.ops.angles import Turns, turns
from ropewalk.ops.backends import BACKENDS, serving, use
from ropewalk.ops.rotation import rotate

__all__ = ["BACKENDS", "Turns", "rotate", "serving", "turns", "use"]
