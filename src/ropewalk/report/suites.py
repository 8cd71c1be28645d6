"""The tasks of a suite put together: by group, and by bin of length."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from ropewalk.evaluate.evaluation_store import CellResult
from ropewalk.evaluate.tasks.base import mean
from ropewalk.report.evaluation import Entry, Row, mean_rows, score_of, task_rows


def group_rows(tasks: Mapping[str, Sequence[CellResult]]) -> list[Row]:
    """The mean of the tasks of each group at each length, for suites whose samples tell a group."""
    groups: dict[str, list[Row]] = {}
    for task, cells in tasks.items():
        told = (outcome["about"].get("group") for cell in cells for outcome in cell.sample_results)
        if group := next(told, None):
            groups.setdefault(group, []).extend(task_rows(task, cells))
    return [row for group, rows in groups.items() for row in mean_rows(group, rows)]


def bin_rows(tasks: Mapping[str, Sequence[CellResult]]) -> list[Row]:
    """The mean over tasks of the mean of each one's samples in a bin of length, where samples tell one."""
    bins: dict[str, list[Row]] = {}
    for task, cells in tasks.items():
        for row, inside in zip(task_rows(task, cells), _by_length(cells), strict=True):
            for name in sorted({each for cell in inside for each in _bins(cell)}):
                entries = {cell.description["column"]: _entry_of(cell, name) for cell in inside}
                bins.setdefault(name, []).append(Row(task, row.length, row.score, row.better, row.share, entries))
    return [row for name in sorted(bins, key=_leading_number) for row in mean_rows(name, bins[name])]


def _by_length(cells: Sequence[CellResult]) -> list[list[CellResult]]:
    lengths = sorted({cell.description["length"] for cell in cells})
    return [[cell for cell in cells if cell.description["length"] == length] for length in lengths]


def _bins(cell: CellResult) -> set[str]:
    return {outcome["about"]["bin"] for outcome in cell.sample_results if "bin" in outcome["about"]}


def _entry_of(cell: CellResult, name: str) -> Entry:
    own = [outcome for outcome in cell.sample_results if outcome["about"].get("bin") == name]
    scores = [score for outcome in own if (score := score_of(outcome, cell.description["main"])) is not None]
    return Entry(mean(scores) if scores and cell.summary else None, len(own), len(own))


def _leading_number(name: str) -> tuple[int, str]:
    """`0-4k` before `4-8k` before `8k+`."""
    digits = name[: len(name) - len(name.lstrip("0123456789"))]
    return int(digits or 0), name
