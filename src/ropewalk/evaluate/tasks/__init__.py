"""The tasks, one file each, and the registry that finds them by name."""

from __future__ import annotations

from dataclasses import fields

from ropewalk import spec as specs
from ropewalk.evaluate.tasks.base import Task
from ropewalk.registry import find_by_name, registered

TASKS: dict[str, type[Task]] = registered(__name__, __path__, Task)  # type: ignore[type-abstract]
__all__ = ["TASKS", "Task", "parse_task"]


def parse_task(spec: str | Task) -> Task:
    """Read a task from `name:option=value,...`; one option of some tasks needs no name, as in `needle:book.txt`.

    Raises InputError naming the task or the option, what was found and what is allowed.
    """
    if isinstance(spec, Task):
        return spec
    name, colon, rest = spec.partition(":")
    cls = find_by_name("task", name, TASKS)
    if cls.positional and rest and "=" not in rest.split(",")[0]:
        rest = f"{cls.positional}={rest}"
    options = specs.read_spec(f"{name}{colon}{rest}")[1]
    for f in fields(cls):  # type: ignore[arg-type]
        said = options.get(f.name, "")
        if not isinstance(said, str) and (f.type == "str" or (f.type == "str | None" and said is not None)):
            options[f.name] = str(said).lower()  # a file may be called 2024, or none
    return specs.build(cls, options)
