"""`ropewalk tasks`: the tasks and metrics of `ropewalk eval`."""

from __future__ import annotations

import inspect
from dataclasses import MISSING, fields
from typing import Any

from ropewalk.cli.options import JsonOption
from ropewalk.cli.output import console, print_entry, print_json


def command(json: JsonOption = False) -> None:
    """List the tasks of `ropewalk eval` with their options, and the metrics."""
    from ropewalk.evaluate.metrics import METRICS
    from ropewalk.evaluate.tasks import TASKS

    tasks: list[Any] = list(TASKS.values())  # dataclasses, which the type of TASKS does not say
    if json:
        task_documents = [
            {
                "name": cls.name,
                "options": {f.name: None if f.default is MISSING else f.default for f in fields(cls)},
                "positional": cls.positional or None,
                "about": _summarize(cls),
            }
            for cls in tasks
        ]
        metrics = [{"name": metric.name, "about": _summarize(type(metric))} for metric in METRICS.values()]
        print_json({"tasks": task_documents, "metrics": metrics})
        return
    for cls in tasks:
        print_entry(cls.name, fields(cls), _summarize(cls))
    console.print("\nMetrics:", ", ".join(METRICS))


def _summarize(cls: type) -> str:
    """Return the first paragraph of a docstring as one line."""
    return (inspect.getdoc(cls) or "").split("\n\n")[0].replace("\n", " ")
