"""The grid of an evaluation: one cell for each combination of task, length, and scaling.

The key of a cell is a digest of everything that determines its results, so that a result is reused only by the cell
that it was computed for.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

from ropewalk.errors import InputError, UnknownNameError, check_length
from ropewalk.evaluate.prompt_encoder import CHAT_CHOICES
from ropewalk.evaluate.tasks import Task, parse_task
from ropewalk.positions import PositionMethod, parse
from ropewalk.scaling import Scaling
from ropewalk.scaling.policies import Policy

# Fields of the description of a cell that determine its results; the others only say how to show them.
_KEY_FIELDS = (
    *("task_name", "task_version", "task_options", "fingerprint", "scaling", "scaling_options", "policy"),
    *("length", "samples", "seed"),
)


@dataclass(frozen=True)
class Cell:
    """One task at one length under one scaling.

    Attributes:
        scaling: the scaling or position method.
        policy: how the scaling follows the text, if it is dynamic.
        task: the task.
        length: tokens of each prompt, or at most so many; see the task.
        samples: number of samples.
        seed: seed of everything random in the samples.
        chat: whether the prompts go through the chat template of the tokenizer.
    """

    scaling: Scaling | PositionMethod
    policy: Policy
    task: Task
    length: int
    samples: int
    seed: int
    chat: bool = False

    @property
    def column(self) -> str:
        """The heading of the cell's column in tables: the scaling, and its policy if it is dynamic."""
        return f"{self.scaling} ({self.policy})" if self.scaling.is_dynamic else str(self.scaling)

    def describe(self, fingerprint: Mapping[str, str]) -> dict[str, Any]:
        """Return the description of the cell that is stored with its results, ready for JSON.

        Args:
            fingerprint: `self.task.fingerprint()`, which is slow; the caller computes it once per task.
        """
        return {
            "task": str(self.task),
            "task_name": self.task.name,
            "task_version": self.task.version,
            "task_options": self.task.options(),
            "fingerprint": fingerprint,
            "main": self.task.main_score,
            "better": "higher" if self.task.higher_is_better else "lower",
            "share": self.task.is_fraction,
            "scaling": str(self.scaling),
            # Not what `learned` tells beside its numbers, such as its date and its file.
            "scaling_options": {f.name: getattr(self.scaling, f.name) for f in fields(self.scaling) if f.compare},
            "policy": str(self.policy) if self.scaling.is_dynamic else None,
            "column": self.column,
            "length": self.length,
            "samples": self.samples,
            "seed": self.seed,
            "chat": self.chat,
        }


def cell_key(model: Mapping[str, Any], description: Mapping[str, Any]) -> str:
    """Return the key of a cell from the descriptions of the model (with `digest` and `dtype`) and of the cell."""
    determining = [model["digest"], model["dtype"], *(description[field] for field in _KEY_FIELDS)]
    if description["chat"]:  # plain prompts keep the key that they had before chat templates were supported
        determining.append("chat")
    return hashlib.sha256(json.dumps(determining, sort_keys=True).encode()).hexdigest()[:32]


def make_grid(
    scalings: Sequence[Any],
    tasks: Sequence[str | Task],
    lengths: Sequence[int],
    *,
    samples: int,
    seed: int,
    policy: Policy,
    chat: str = "off",
) -> list[Cell]:
    """Return all cells, ordered by task, length, and scaling; the arguments are those of `Evaluation`.

    Cells that differ in the scaling only are adjacent, so that a worker can reuse their prompts.
    With `chat`, cells of tasks that have it among their `chat_choices` use a chat template.
    Raises InputError if there is no scaling, task or length, and for an invalid one.
    """
    for field, values in (("scaling", scalings), ("task", tasks), ("lengths", lengths)):
        if not values:
            raise InputError(field, [], "at least one")
    check_length("samples", samples, "samples")
    if chat not in CHAT_CHOICES:
        raise UnknownNameError("chat", chat, CHAT_CHOICES)
    unique_scalings = dict.fromkeys(parse(scaling) for scaling in scalings)
    unique_tasks = dict.fromkeys(member for task in tasks for member in parse_task(task).expand())
    return [
        Cell(scaling, policy, task, check_length("lengths", length), samples, seed, chat in task.chat_choices)
        for task in unique_tasks
        for length in sorted(set(lengths))
        for scaling in unique_scalings
    ]
