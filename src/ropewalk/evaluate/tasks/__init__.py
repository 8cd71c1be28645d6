"""The tasks of `ropewalk eval`, one file for each, and the registry that finds them by name."""

from __future__ import annotations

from ropewalk import spec as specs
from ropewalk.evaluate.tasks.base import Task
from ropewalk.registry import discover_subclasses, find_by_name

TASKS: dict[str, type[Task]] = discover_subclasses(__name__, __path__, Task)  # type: ignore[type-abstract]
__all__ = ["TASKS", "Task", "parse_task"]


def parse_task(spec: str | Task) -> Task:
    """Create a task from a spec such as `needle:text=book.txt,keys=4`.

    A task is returned unchanged. Raises InputError for an unknown task or option and for a value that is not allowed.
    """
    if isinstance(spec, Task):
        return spec
    return specs.parse_spec(spec, lambda name: find_by_name("task", name, TASKS))
