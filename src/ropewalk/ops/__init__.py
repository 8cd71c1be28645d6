"""The rotation of q and k, on CPUs and GPUs.

    q, k = rotate(q, k, positions, frequencies)

`rotation` holds this function, `custom_op` its torch operators, `angles` the representations of angles, and `backends`
one file for each implementation.
"""

from __future__ import annotations

from ropewalk.ops.angles import FixedPointFrequencies, to_fixed_point
from ropewalk.ops.backends import BACKENDS, backend_for, use_backend
from ropewalk.ops.rotation import rotate

__all__ = ["BACKENDS", "FixedPointFrequencies", "backend_for", "rotate", "to_fixed_point", "use_backend"]
