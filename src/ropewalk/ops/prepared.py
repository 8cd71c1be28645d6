"""Rotations that were checked and planned once, and that later calls with the same signature only launch.

In Python, the checks and the plan of a small rotation take longer than the rotation. Both depend on its signature only:
on everything about the arguments except the values of the tensors and, up to their alignment, their addresses.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from ropewalk.ops.backends.base import Backend, Launch

_MAX_LAUNCHES = 2048
_ALIGNMENT = 16  # bytes; Triton compiles other code for addresses that are not multiples of it

Signature = tuple[Any, ...]
_launches: dict[Signature, Launch] = {}


def signature_of(backend: Backend, options: object, q: Tensor, k: Tensor, angles: Sequence[Tensor]) -> Signature:
    """Return the signature of a rotation.

    Args:
        backend: the backend that runs it.
        options: everything that the checks and the plan depend on besides the tensors, and whether there is a k.
        q, k: k may be q.
        angles: a representation of `ropewalk.ops.angles`.
    """
    first, second = angles[0], angles[1]
    # Written out, because a loop over the tensors takes twice as long.
    signature = (
        backend,
        options,
        (q.shape, q.stride(), q.dtype, q.device, q.is_neg(), q.data_ptr() % _ALIGNMENT),
        (k.shape, k.stride(), k.dtype, k.device, k.is_neg(), k.data_ptr() % _ALIGNMENT),
        (first.shape, first.stride(), first.dtype, first.device, first.is_neg(), first.data_ptr() % _ALIGNMENT),
        (second.shape, second.stride(), second.dtype, second.device, second.is_neg(), second.data_ptr() % _ALIGNMENT),
    )
    if len(angles) == 2:
        return signature
    third = angles[2]
    return *signature, (third.shape, third.stride(), third.dtype, third.device, third.data_ptr() % _ALIGNMENT)


def find_launch(signature: Signature) -> Launch | None:
    """Return the launch that was kept for this signature, or None."""
    return _launches.get(signature)


def keep_launch(signature: Signature, launch: Launch) -> None:
    """Keep a launch for later calls with this signature."""
    if len(_launches) >= _MAX_LAUNCHES:  # reached after texts of many lengths
        _launches.clear()
    _launches[signature] = launch
