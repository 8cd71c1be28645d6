"""The tasks, one file each, and the registry that finds them by name."""

from __future__ import annotations

from ropewalk import spec as specs
from ropewalk.evaluate.tasks.base import Task
from ropewalk.registry import registered

TASKS: dict[str, type[Task]] = registered(__name__, __path__, Task)  # type: ignore[type-abstract]
__all__ = ["TASKS", "Task", "parse_task"]


def parse_task(spec: str | Task) -> Task:
    """Read a task from `name:option=value,...`; one option of some tasks needs no name, as in `needle:book.txt`.

    Raises InputError naming the task or the option, what was found and what is allowed.
    """
    if isinstance(spec, Task):
        return spec
    name, colon, rest = spec.partition(":")
    cls = specs.find("task", name, TASKS, TASKS)
    if cls.positional and rest and "=" not in rest.split(",")[0]:
        rest = f"{cls.positional}={rest}"
    return specs.build(cls, specs.read_spec(f"{name}{colon}{rest}")[1])
