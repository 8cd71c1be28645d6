from __future__ import annotations

from typing import Any

from ropewalk.cli.output import Json, print_json, results


def command(json: Json = False) -> None:
    """List what can turn q and k: each backend of the rotation, what it serves, and why one cannot run here.

    ROPEWALK_ROTATION=NAME in the environment chooses another.
    """
    from ropewalk.ops import BACKENDS, backend_for

    devices = [*sorted(frozenset().union(*(backend.devices for backend in BACKENDS.values()))), "other devices"]
    rows: list[dict[str, Any]] = [
        {
            "name": backend.name,
            "variant": None if backend.missing() else backend.variant,
            "serves": [device for device in devices if backend_for(device) is backend],
            "missing": backend.missing(),
        }
        for backend in BACKENDS.values()
    ]
    if json:
        print_json(rows)
        return
    for row in rows:
        state = f"cannot run: {row['missing']}" if row["missing"] else f"serves {', '.join(row['serves']) or 'nothing'}"
        results.print(f"[bold]{row['variant'] or row['name']}[/bold]  {state}", highlight=False)
