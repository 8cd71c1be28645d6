"""The tasks of `ropewalk eval`, one file for each, and the registry that finds them by name."""

from __future__ import annotations

from dataclasses import fields

from ropewalk import spec as specs
from ropewalk.evaluate.tasks.base import Task
from ropewalk.registry import discover_subclasses, find_by_name

TASKS: dict[str, type[Task]] = discover_subclasses(__name__, __path__, Task)  # type: ignore[type-abstract]
__all__ = ["TASKS", "Task", "parse_task"]


def parse_task(spec: str | Task) -> Task:
    """Create a task from a spec such as `needle:text=book.txt,keys=4`.

    The name of a task's positional option can be left out, as in `needle:book.txt`. A task is returned unchanged.

    Raises InputError for an unknown task or option and for a value that is not allowed.
    """
    if isinstance(spec, Task):
        return spec
    name, colon, rest = spec.partition(":")
    cls = find_by_name("task", name, TASKS)
    if cls.positional and rest and "=" not in rest.split(",")[0]:
        rest = f"{cls.positional}={rest}"
    options = specs.parse_spec(f"{name}{colon}{rest}")[1]
    for f in fields(cls):  # type: ignore[arg-type]
        # Undo the parsing of values for options that are strings: a file may be called 2024 or none.
        value = options.get(f.name, "")
        if not isinstance(value, str) and (f.type == "str" or (f.type == "str | None" and value is not None)):
            options[f.name] = str(value).lower()
    return specs.build_from_options(cls, options)
