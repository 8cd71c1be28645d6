"""The grid of an evaluation: tasks x lengths x scalings, each cell with a key of all that determines it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from ropewalk.errors import InputError, check_length
from ropewalk.evaluate.tasks import Task, parse_task
from ropewalk.scaling import Scaling, parse
from ropewalk.scaling.policies import Policy

_DETERMINES = (
    *("task_name", "task_version", "task_options", "fingerprint", "scaling", "scaling_options", "policy"),
    *("length", "samples", "seed"),
)


@dataclass(frozen=True)
class Cell:
    """One task at one length under one scaling: `samples` questions, made from `seed`."""

    scaling: Scaling
    policy: Policy
    task: Task
    length: int
    samples: int
    seed: int

    @property
    def column(self) -> str:
        """The scaling, and where it is dynamic the policy it follows."""
        return f"{self.scaling} ({self.policy})" if self.scaling.is_dynamic else str(self.scaling)

    def describe(self, fingerprint: dict[str, str]) -> dict[str, Any]:
        """What the cell is, ready for JSON; `fingerprint` is that of its task."""
        return {
            "task": str(self.task),
            "task_name": self.task.name,
            "task_version": self.task.version,
            "task_options": self.task.options(),
            "fingerprint": fingerprint,
            "main": self.task.main,
            "better": self.task.better,
            "share": self.task.share,
            "scaling": str(self.scaling),
            "scaling_options": asdict(self.scaling),
            "policy": str(self.policy) if self.scaling.is_dynamic else None,
            "column": self.column,
            "length": self.length,
            "samples": self.samples,
            "seed": self.seed,
        }


def cell_key(model: dict[str, Any], description: dict[str, Any]) -> str:
    """What tells a cell from all others: a digest of all that determines it."""
    determined = [model["digest"], model["dtype"], *(description[name] for name in _DETERMINES)]
    return hashlib.sha256(json.dumps(determined, sort_keys=True).encode()).hexdigest()[:32]


def make_grid(
    scalings: Sequence[Any],
    tasks: Sequence[str | Task],
    lengths: Sequence[int],
    *,
    samples: int,
    seed: int,
    policy: Policy,
) -> list[Cell]:
    """All cells, in the order they are shown; the scalings of a task and length, which share prompts, together.

    Raises InputError for an empty side of the grid or a number that means nothing.
    """
    for field, given in (("scaling", scalings), ("task", tasks), ("lengths", lengths)):
        if not given:
            raise InputError(field, "none", "at least one")
    check_length("samples", samples, "questions")
    read = dict.fromkeys(parse(scaling) for scaling in scalings)
    known = dict.fromkeys(member for task in tasks for member in parse_task(task).expand())
    return [
        Cell(scaling, policy, task, check_length("lengths", length), samples, seed)
        for task in known
        for length in sorted(set(lengths))
        for scaling in read
    ]
