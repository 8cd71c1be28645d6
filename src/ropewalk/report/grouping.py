"""Group the cells of an evaluation by scaling, by task and by kind of task.

A cell is one task at one length under one scaling. Cells may be compared or averaged only if they were evaluated with
the same settings, so a group that would mix settings is split, and its parts are named after their settings.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from ropewalk.evaluate.evaluation_store import CellResult

_SUITES = ("ruler", "longbench")
_DIGEST_CHARACTERS = 15  # shown of the digest of a file that a task read


def list_columns(cells: Iterable[CellResult]) -> list[str]:
    """Return the scalings, each with its policy if it is dynamic, in the order of the run."""
    return list(dict.fromkeys(cell.description["column"] for cell in cells))


def group_by_column(cells: Sequence[CellResult]) -> dict[str, list[CellResult]]:
    """Return the cells of each scaling."""
    return {column: [cell for cell in cells if cell.description["column"] == column] for column in list_columns(cells)}


def group_by_task(cells: Sequence[CellResult]) -> dict[str, list[CellResult]]:
    """Return the cells of each task, by its name.

    A folder may hold a task with several settings: seeds, numbers of samples, prompts with and without a chat template,
    or versions of a file that it reads.
    Their values must not be compared, so each of them is a task here, with the settings in its name.
    """
    groups: dict[tuple[str, str], list[CellResult]] = {}
    for cell in cells:
        fingerprint = sorted(cell.description["fingerprint"].items())
        details = [f"{file} {digest[:_DIGEST_CHARACTERS]}" for file, digest in fingerprint]
        groups.setdefault((cell.description["task"], _describe_settings(cell.description, details)), []).append(cell)
    return _name_groups(groups)


def group_by_kind(cells: Sequence[CellResult]) -> dict[str, dict[str, list[CellResult]]]:
    """Return the cells of each task, by the kind of task (needle, ruler) and then by the name of the task.

    The tasks of a suite are in one kind only if they have the same settings, since their mean is shown.
    """
    groups: dict[tuple[str, str], dict[str, list[CellResult]]] = {}
    for task, task_cells in group_by_task(cells).items():
        description = task_cells[0].description
        kind, settings = description["task_name"], ""
        if is_suite(kind):
            options = description["task_options"].items()
            details = [f"{option} {value}" for option, value in options if option != "task" and value]
            settings = _describe_settings(description, details)
        groups.setdefault((kind, settings), {})[task] = task_cells
    return _name_groups(groups)


def is_suite(kind: str) -> bool:
    """Return whether the tasks of this kind are summarized by their mean."""
    return kind.split(" ", maxsplit=1)[0] in _SUITES


def _describe_settings(description: Mapping[str, Any], details: Iterable[str]) -> str:
    """Return the settings of a cell as text: `10 samples, seed 0, DETAILS, version 1`."""
    parts = [f"{description['samples']} samples", f"seed {description['seed']}"]
    parts += ["chat template" if description["chat"] else "plain text", *details]
    return ", ".join([*parts, f"version {description['task_version']}"])


def _name_groups(groups: Mapping[tuple[str, str], Any]) -> dict[str, Any]:
    """Replace each key (name, settings) by the name alone, with the settings only if the name is not unique."""
    count = Counter(name for name, _ in groups)
    return {name if count[name] == 1 else f"{name} ({settings})": group for (name, settings), group in groups.items()}
