"""`ropewalk backends`: which implementation rotates queries and keys on which device."""

from __future__ import annotations

from typing import Any

from ropewalk.cli.options import JsonOption
from ropewalk.cli.output import print_bold, print_json


def command(json: JsonOption = False) -> None:
    """List the backends that rotate queries and keys, the devices they are used on, and why one is unavailable.

    Set ROPEWALK_ROTATION=NAME in the environment to choose a backend.
    """
    from ropewalk.ops import BACKENDS, backend_for

    devices = [*sorted({device for backend in BACKENDS.values() for device in backend.devices}), "other devices"]
    rows: list[dict[str, Any]] = []
    for backend in BACKENDS.values():
        reason = backend.unavailable_reason()
        rows.append(
            {
                "name": backend.name,
                "variant": None if reason else backend.variant,
                "serves": [device for device in devices if backend_for(device) is backend],
                "missing": reason,
            }
        )
    if json:
        print_json(rows)
        return
    for row in rows:
        state = f"unavailable: {row['missing']}"
        if not row["missing"]:
            state = f"used on {', '.join(row['serves'])}" if row["serves"] else "available, not used"
        print_bold(row["variant"] or row["name"], f"  {state}")
