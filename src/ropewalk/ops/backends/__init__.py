"""The backends of the rotation, and the choice of one for each type of device.

The fastest backend that can run here is chosen at import. The environment variable ROPEWALK_ROTATION or `use_backend`
selects another.
"""

from __future__ import annotations

import os

from ropewalk.errors import InputError
from ropewalk.ops.backends.base import Backend, RotationTask
from ropewalk.registry import discover_subclasses, find_by_name

VARIABLE = "ROPEWALK_ROTATION"
BACKENDS: dict[str, Backend] = {
    name: cls()
    for name, cls in discover_subclasses(__name__, __path__, Backend).items()  # type: ignore[type-abstract]
}
_ANY_DEVICE = ""  # the key of the backend for device types that no other backend names
_by_device: dict[str, Backend] = {}
__all__ = ["BACKENDS", "VARIABLE", "Backend", "RotationTask", "backend_for", "use_backend"]


def backend_for(device_type: str) -> Backend:
    """Return the backend that rotates tensors on devices of this type."""
    return _by_device.get(device_type) or _by_device[_ANY_DEVICE]


def use_backend(name: str | None = None, field: str = "rotation backend") -> None:
    """Use a backend from now on, on all devices that it serves.

    Args:
        name: a key of BACKENDS; None to choose the fastest backend for each device again.
        field: what to call the name in an error.

    Raises UnknownNameError for an unknown backend, InputError for one that cannot run here.
    """
    usable = [backend for backend in BACKENDS.values() if backend.unavailable_reason() is None]
    usable.sort(key=lambda backend: backend.rank)
    if name is not None:
        usable_names = [backend.name for backend in usable]
        selected = find_by_name(field, name, BACKENDS, usable_names)
        reason = selected.unavailable_reason()
        if reason is not None:
            raise InputError(field, name, ", ".join(usable_names), reason)
        usable.append(selected)
    _by_device.clear()
    for backend in usable:  # later backends replace earlier ones
        for device_type in backend.devices or [*_by_device, _ANY_DEVICE]:
            _by_device[device_type] = backend


use_backend(os.environ.get(VARIABLE), VARIABLE)
