from __future__ import annotations

import inspect
from dataclasses import MISSING, fields
from typing import Any

from ropewalk.cli.output import Json, print_json, results


def command(json: Json = False) -> None:
    """List the tasks of `ropewalk eval` with their options, and the metrics by name."""
    from ropewalk.evaluate.metrics import METRICS
    from ropewalk.evaluate.tasks import TASKS

    kinds: list[Any] = list(TASKS.values())
    tasks = [
        {
            "name": cls.name,
            "options": {f.name: None if f.default is MISSING else f.default for f in fields(cls)},
            "positional": cls.positional or None,
            "about": _first_line(cls),
        }
        for cls in kinds
    ]
    metrics = [{"name": metric.name, "about": _first_line(type(metric))} for metric in METRICS.values()]
    if json:
        print_json({"tasks": tasks, "metrics": metrics})
        return
    for cls in kinds:
        options = [f"{f.name} (needed)" if f.default is MISSING else f"{f.name}={f.default}" for f in fields(cls)]
        results.print(f"[bold]{cls.name}[/bold]  {', '.join(options)}", highlight=False)
        results.print(f"    {_first_line(cls)}", highlight=False, markup=False)
    results.print("\nMetrics:", ", ".join(METRICS), highlight=False)


def _first_line(cls: type) -> str:
    return (inspect.getdoc(cls) or "").split("\n\n")[0].replace("\n", " ")
