"""Scores as rows: one row per task and length, with one entry per scaling. Tables and pictures are made from these."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from ropewalk.evaluate.evaluation_store import CellResult
from ropewalk.evaluate.sample import SampleResult
from ropewalk.evaluate.tasks.base import mean
from ropewalk.report.formatting import format_score
from ropewalk.report.grouping import group_by_kind, is_suite


@dataclass(frozen=True)
class ScoreEntry:
    """The score under one scaling.

    Attributes:
        value: None until all samples are finished.
        finished: number of finished samples.
        samples: number of samples requested.
    """

    value: float | None
    finished: int
    samples: int


@dataclass(frozen=True)
class ScoreRow:
    """One score of one task at one length, under every scaling.

    Attributes:
        task: name of the task, or of the group of tasks that the row averages.
        length: tokens of the prompt.
        score: name of the score.
        higher_is_better: True for an accuracy, False for a perplexity.
        is_share: True if the values lie between 0 and 1, which are shown in percent.
        entries: one per scaling, by its column name.
        averaged_tasks: names of the tasks that the row is the mean of; empty for the row of a single task.
    """

    task: str
    length: int
    score: str
    higher_is_better: bool
    is_share: bool
    entries: Mapping[str, ScoreEntry]
    averaged_tasks: tuple[str, ...] = ()

    @property
    def heading(self) -> str:
        """The name of the score with its unit."""
        return f"{self.score}, %" if self.is_share else self.score

    @property
    def values(self) -> dict[str, float]:
        """The values of the scalings whose samples are all finished, by column name."""
        return {column: entry.value for column, entry in self.entries.items() if entry.value is not None}

    def best_value(self) -> float | None:
        """Return the best finite value, or None if no scaling has one."""
        finite = [value for value in self.values.values() if math.isfinite(value)]
        choose = max if self.higher_is_better else min
        return choose(finite, default=None)

    def format(self, column: str) -> str:
        """Return the value under a scaling as text; `3/10` while only three of ten samples are finished."""
        entry = self.entries.get(column)
        if entry is None:
            return ""
        if entry.value is None:
            return f"{entry.finished}/{entry.samples}"
        return format_score(entry.value, self.is_share)

    def is_best(self, column: str) -> bool:
        """Return whether the value is the best as displayed. No value is if all of them look the same."""
        best = self.best_value()
        if column not in self.values or best is None:
            return False
        displayed = {self.format(other) for other in self.values}
        return len(displayed) > 1 and self.format(column) == format_score(best, self.is_share)


def sample_score(sample: SampleResult, name: str) -> float | None:
    """Return one score of one sample, or None if it is not a number: some tasks of lm-eval store lists."""
    value: object = sample["scores"].get(name)
    return float(value) if isinstance(value, int | float) else None


def all_rows(cells: Sequence[CellResult]) -> list[ScoreRow]:
    """Return the main score of every task at every length; the mean of a suite follows its tasks."""
    rows: list[ScoreRow] = []
    for kind, tasks in group_by_kind(cells).items():
        kind_rows = [row for task, task_cells in tasks.items() for row in task_rows(task, task_cells)]
        rows += kind_rows
        if is_suite(kind) and len(tasks) > 1:
            rows += mean_rows(kind, kind_rows)
    return rows


def task_rows(task: str, cells: Sequence[CellResult], score: str | None = None) -> list[ScoreRow]:
    """Return one row per length for a task: its main score, or another one by name."""
    description = cells[0].description
    score = score or description["main"]
    is_share = is_share_score(cells, score)
    rows = []
    for length in sorted({cell.description["length"] for cell in cells}):
        entries = {}
        for cell in cells:
            if cell.description["length"] == length:
                value = None if cell.summary is None else cell.summary.get(score)
                requested = cell.description["samples"]
                entries[cell.description["column"]] = ScoreEntry(value, len(cell.sample_results), requested)
        rows.append(ScoreRow(task, length, score, description["better"] == "higher", is_share, entries))
    return rows


def is_share_score(cells: Sequence[CellResult], score: str) -> bool:
    """Return whether the task declares shares as its scores and all values of this score are from 0 to 1."""
    values = [cell.summary[score] for cell in cells if cell.summary and score in cell.summary]
    return bool(cells[0].description["share"]) and all(0 <= value <= 1 for value in values)


def mean_rows(name: str, rows: Sequence[ScoreRow]) -> list[ScoreRow]:
    """Return the mean of several tasks at each length, for the scalings under which all of them are finished."""
    scores = {row.score for row in rows}
    score = rows[0].score if len(scores) == 1 else "scores"
    is_share = all(row.is_share for row in rows)
    means = []
    for length in sorted({row.length for row in rows}):
        averaged = [row for row in rows if row.length == length]
        title = f"{name}, mean of {len(averaged)}" if len(averaged) > 1 else name
        tasks = tuple(row.task for row in averaged)
        higher_is_better = averaged[0].higher_is_better
        means.append(ScoreRow(title, length, score, higher_is_better, is_share, _mean_entries(averaged), tasks))
    return means


def group_rows(tasks: Mapping[str, Sequence[CellResult]]) -> list[ScoreRow]:
    """Return the mean of each group of tasks at each length, for suites whose samples name a group."""
    groups: dict[str, list[ScoreRow]] = {}
    for task, cells in tasks.items():
        names = [sample["about"].get("group") for cell in cells for sample in cell.sample_results]
        if names and names[0]:
            groups.setdefault(names[0], []).extend(task_rows(task, cells))
    return [row for group, rows in groups.items() for row in mean_rows(group, rows)]


def length_bin_rows(tasks: Mapping[str, Sequence[CellResult]]) -> list[ScoreRow]:
    """Return the scores for each range of sample lengths ("4-8k"), averaged over tasks, if samples name a bin."""
    rows_by_bin: dict[str, list[ScoreRow]] = {}
    for task, cells in tasks.items():
        for row in task_rows(task, cells):
            row_cells = [cell for cell in cells if cell.description["length"] == row.length]
            samples = [sample for cell in row_cells for sample in cell.sample_results]
            for bin_name in sorted({sample["about"]["bin"] for sample in samples if "bin" in sample["about"]}):
                entries = {cell.description["column"]: _bin_entry(cell, bin_name) for cell in row_cells}
                rows_by_bin.setdefault(bin_name, []).append(replace(row, entries=entries))
    names = sorted(rows_by_bin, key=_leading_number)
    return [row for name in names for row in mean_rows(name, rows_by_bin[name])]


def _mean_entries(rows: Sequence[ScoreRow]) -> dict[str, ScoreEntry]:
    means = {}
    for column in dict.fromkeys(column for row in rows for column in row.entries):
        entries = [row.entries[column] for row in rows if column in row.entries]
        values = [row.values[column] for row in rows if column in row.values]
        value = mean(values) if len(values) == len(rows) else None
        finished, samples = sum(entry.finished for entry in entries), sum(entry.samples for entry in entries)
        means[column] = ScoreEntry(value, finished, samples)
    return means


def _bin_entry(cell: CellResult, bin_name: str) -> ScoreEntry:
    samples = [sample for sample in cell.sample_results if sample["about"].get("bin") == bin_name]
    scores = [sample_score(sample, cell.description["main"]) for sample in samples]
    numbers = [score for score in scores if score is not None]
    return ScoreEntry(mean(numbers) if numbers and cell.summary else None, len(samples), len(samples))


def _leading_number(name: str) -> tuple[int, str]:
    """Return a sort key that puts `0-4k` before `4-8k` before `16k+`."""
    digits, *_ = re.findall(r"^\d*", name)
    return int(digits or 0), name
