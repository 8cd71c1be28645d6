"""The backends of the rotation, one file each, and which of them serves which type of device.

The choice is made once, when this is imported: the fastest that can run here. The environment variable
ROPEWALK_ROTATION or `use` make another.
"""

from __future__ import annotations

import os

from ropewalk.errors import InputError
from ropewalk.ops.backends.base import Backend
from ropewalk.registry import find_by_name, registered

VARIABLE = "ROPEWALK_ROTATION"
BACKENDS: dict[str, Backend] = {
    name: cls()
    for name, cls in registered(__name__, __path__, Backend).items()  # type: ignore[type-abstract]
}
_serving: dict[str, Backend] = {}  # by type of device; "" for those that none names
__all__ = ["BACKENDS", "VARIABLE", "Backend", "backend_for", "use"]


def backend_for(device_type: str) -> Backend:
    """What turns tensors of such devices."""
    return _serving.get(device_type) or _serving[""]


def use(name: str | None = None, said_in: str = "rotation backend") -> None:
    """Let this backend turn from now on, on the devices that it serves; without a name the fastest, as at first.

    Raises InputError, naming `said_in`, for an unknown one and for one that cannot run here.
    """
    usable = sorted((each for each in BACKENDS.values() if each.missing() is None), key=lambda each: each.rank)
    if name is not None:
        names = {each.name: each for each in usable}
        asked = find_by_name(said_in, name, BACKENDS, names)
        if (missing := asked.missing()) is not None:
            raise InputError(said_in, name, f"{', '.join(names)}; {missing}")
        usable.append(asked)
    _serving.clear()
    for each in usable:
        # One that serves all devices displaces those before it; one that serves some, on these alone.
        _serving.update(dict.fromkeys(each.devices or [*_serving, ""], each))


use(os.environ.get(VARIABLE), VARIABLE)
