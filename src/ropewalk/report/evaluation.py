"""An evaluation as rows: for the terminal, for JSON, and for everything that is drawn of it."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

from rich.box import HORIZONTALS
from rich.table import Table
from rich.text import Text

from ropewalk.evaluate.sample import SampleResult
from ropewalk.evaluate.store import CellResult, Store
from ropewalk.evaluate.tasks.base import mean
from ropewalk.lengths import length_name
from ropewalk.report.labels import number

_TASK = 12  # characters, at least, for the name of a task
_SUITES = "ruler", "longbench"


@dataclass(frozen=True)
class Entry:
    """What a scaling has in a row: the value, None until all samples are in; how many are in, of how many."""

    value: float | None
    done: int
    samples: int


@dataclass(frozen=True)
class Row:
    """A task at a length under every scaling.

    `score`: what the values are; `better`: higher or lower; `share`: whether they run from 0 to 1, which is shown in
    percent; `entries`: by column; `members`: the tasks that it is the mean of, none for a task itself.
    """

    task: str
    length: int
    score: str
    better: str
    share: bool
    entries: Mapping[str, Entry]
    members: tuple[str, ...] = ()

    def best(self) -> float | None:
        """The best of the values that are in."""
        values = [e.value for e in self.entries.values() if e.value is not None and math.isfinite(e.value)]
        return (max if self.better == "higher" else min)(values) if values else None

    def shown(self, column: str) -> str:
        """The value as people read it, or how many samples are in."""
        entry = self.entries.get(column)
        if entry is None:
            return ""
        return f"{entry.done}/{entry.samples}" if entry.value is None else value_text(entry.value, self.share)

    def is_best(self, column: str) -> bool:
        """Whether the value reads as the best of several does."""
        best, entry = self.best(), self.entries.get(column)
        known = best is not None and entry is not None and entry.value is not None
        several = len({self.shown(each) for each, own in self.entries.items() if own.value is not None}) > 1
        return known and several and self.shown(column) == value_text(best or 0.0, self.share)

    @property
    def unit(self) -> str:
        """The score with its unit."""
        return f"{self.score}, %" if self.share else self.score


def value_text(value: float, share: bool) -> str:
    """A share of 1 in percent, anything else as it is; the unit stands in the heading."""
    return f"{100 * value:.1f}" if share else number(value)


def score_of(outcome: SampleResult, name: str) -> float | None:
    """A score of one sample, None where it is no number: some tasks of the harness sum up lists."""
    value: object = outcome["scores"].get(name)
    return float(value) if isinstance(value, int | float) else None


def columns(cells: Iterable[CellResult]) -> list[str]:
    """The scalings, in the order of the run."""
    return list(dict.fromkeys(cell.description["column"] for cell in cells))


def by_task(cells: Sequence[CellResult]) -> dict[str, list[CellResult]]:
    """The cells of each task, by its name.

    One folder may hold a task asked in several ways, of another seed, number of samples or state of a file; their
    names then say so, for their values are not to be compared.
    """
    asked: dict[str, dict[str, list[CellResult]]] = {}
    for cell in cells:
        asked.setdefault(cell.description["task"], {}).setdefault(_way(cell), []).append(cell)
    return {
        task + (f" ({way})" if len(ways) > 1 else ""): members
        for task, ways in asked.items()
        for way, members in ways.items()
    }


def _way(cell: CellResult) -> str:
    about = cell.description
    prints = "".join(f", {name} {digest[:15]}" for name, digest in sorted(about["fingerprint"].items()))
    return f"{about['samples']} samples, seed {about['seed']}{prints}, version {about['task_version']}"


def rows(cells: Sequence[CellResult]) -> list[Row]:
    """Every task at every length; after the tasks of a suite their mean at each length."""
    found: list[Row] = []
    for name, tasks in by_kind(cells).items():
        own = [row for task, members in tasks.items() for row in task_rows(task, members)]
        found += own
        if is_suite(name) and len(tasks) > 1:
            found += mean_rows(name, own)
    return found


def by_kind(cells: Sequence[CellResult]) -> dict[str, dict[str, list[CellResult]]]:
    """The cells of each task, under the name of the kind of task (needle, ruler) and then its own.

    Tasks of a suite are together when they were asked in the same way: the mean of others would mean nothing.
    """
    kinds: dict[tuple[str, str], dict[str, list[CellResult]]] = {}
    for task, members in by_task(cells).items():
        kinds.setdefault(_kind(members[0].description), {})[task] = members
    several = Counter(name for name, _ in kinds)
    return {name if several[name] == 1 else f"{name} ({way})": tasks for (name, way), tasks in kinds.items()}


def _kind(about: Mapping[str, Any]) -> tuple[str, str]:
    """The kind of task, and how a suite was asked."""
    name = about["task_name"]
    options = "".join(f", {each} {value}" for each, value in about["task_options"].items() if each != "task" and value)
    way = f"{about['samples']} samples, seed {about['seed']}{options}, version {about['task_version']}"
    return name, way if is_suite(name) else ""


def is_suite(kind: str) -> bool:
    """Whether the tasks of a kind are read together, as a mean."""
    return kind.split(" ", maxsplit=1)[0] in _SUITES


def task_rows(task: str, cells: Sequence[CellResult], score: str | None = None) -> list[Row]:
    """One task at each of its lengths: its main score, or another."""
    about = cells[0].description
    shown = score or about["main"]
    at: dict[int, dict[str, Entry]] = {}
    for cell in sorted(cells, key=lambda cell: int(cell.description["length"])):
        value = None if cell.summary is None else cell.summary.get(shown)
        entry = Entry(value, len(cell.outcomes), cell.description["samples"])
        at.setdefault(cell.description["length"], {})[cell.description["column"]] = entry
    share = is_share(cells, shown)
    return [Row(task, length, shown, about["better"], share, entries) for length, entries in at.items()]


def is_share(cells: Sequence[CellResult], score: str) -> bool:
    """Whether a score of a task runs from 0 to 1, which is shown as percent; no value is outside then."""
    values = [cell.summary[score] for cell in cells if cell.summary and score in cell.summary]
    return bool(cells[0].description["share"]) and all(0 <= value <= 1 for value in values)


def mean_rows(name: str, members: Sequence[Row]) -> list[Row]:
    """The mean of tasks at each length, for the scalings under which all of them are done."""
    at = {length: [row for row in members if row.length == length] for length in sorted({r.length for r in members})}
    scores = Counter(row.score for row in members)
    score = members[0].score if len(scores) == 1 else "scores"
    share = all(row.share for row in members)
    found = []
    for length, own in at.items():
        named = f"{name}, mean of {len(own)}" if len(own) > 1 else name
        tasks = tuple(row.task for row in own)
        found.append(Row(named, length, score, own[0].better, share, _means(own), tasks))
    return found


def _means(own: Sequence[Row]) -> dict[str, Entry]:
    means = {}
    for column in dict.fromkeys(column for row in own for column in row.entries):
        entries = [row.entries[column] for row in own if column in row.entries]
        values = [entry.value for entry in entries if entry.value is not None]
        value = mean(values) if len(values) == len(own) else None
        means[column] = Entry(value, sum(entry.done for entry in entries), sum(entry.samples for entry in entries))
    return means


def summary_table(cells: Sequence[CellResult]) -> Table:
    """Tasks and lengths down, scalings across, the best of each row in bold with a star."""
    table = Table(title="* best of the row; 3/10: three of ten samples are in", box=HORIZONTALS, padding=(0, 1, 0, 0))
    shown, found = columns(cells), rows(cells)
    table.add_column("task", overflow="fold", min_width=_TASK)
    table.add_column("length", justify="right", min_width=len("length"))
    for column in shown:  # values stay whole, whatever becomes of the names
        widest = max(len(row.shown(column)) for row in found) + 1
        table.add_column(Text(column), justify="right", overflow="fold", min_width=widest)
    for task, same in groupby(found, key=lambda row: (row.task, row.unit)):
        table.add_section()
        for at, row in enumerate(same):
            name = Text(f"{task[0]} ({task[1]})" if at == 0 else "")
            table.add_row(name, length_name(row.length), *(_marked(row, column) for column in shown))
    return table


def _marked(row: Row, column: str) -> Text:
    return Text(f"{row.shown(column)}*", "bold") if row.is_best(column) else Text(f"{row.shown(column)} ")


def document(store: Store, cells: Sequence[CellResult]) -> dict[str, Any]:
    """Ready for JSON. `done` counts the samples that are in, of `samples`; `summary` is null until all are."""
    about = ("task", "length", "scaling", "policy", "seed", "samples")
    return {
        "model": store.model,
        "runs": store.runs(),
        "cells": [
            {
                **{name: cell.description[name] for name in about},
                **({} if cell.summary is None else {"samples": len(cell.outcomes)}),  # a data set may hold fewer
                "summary": cell.summary,
                "done": len(cell.outcomes),
            }
            for cell in cells
        ],
    }
