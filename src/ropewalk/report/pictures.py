"""Which pictures an evaluation has, each drawn into a file."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ropewalk.evaluate.store import CellResult
from ropewalk.report.evaluation import Row, by_kind, columns, is_suite, mean_rows, task_rows
from ropewalk.report.heatmap import depth_grid, depth_rows, draw_grids, row_grid
from ropewalk.report.labels import shortened
from ropewalk.report.lines import draw_lines, one_each
from ropewalk.report.suites import group_rows


@dataclass(frozen=True)
class Picture:
    """A PNG and what it shows, for those who do not see it."""

    path: Path
    alt: str


class Gallery:
    """The pictures of one model's evaluation, drawn into a folder.

    `original_length`: tokens the model was trained on, None where that is not known.
    """

    def __init__(self, folder: Path, model: str, original_length: int | None) -> None:
        self._folder = folder
        self._model = shortened(model, 48)
        self._original_length = original_length

    def draw(self, cells: Sequence[CellResult]) -> Iterator[Picture]:
        """Heat maps of what has a depth, the tasks of suites, and every score against length."""
        for kind, tasks in by_kind(cells).items():
            own = {task: task_rows(task, members) for task, members in tasks.items()}
            if is_suite(kind) and len(tasks) > 1:
                yield from self._suite(kind, [row for rows in own.values() for row in rows], group_rows(tasks))
                continue
            for task, members in tasks.items():
                if own[task][0].share:
                    yield from self._depths(task, members)
                yield from self._lines(task, own[task])

    def _suite(self, kind: str, rows: Sequence[Row], groups: Sequence[Row]) -> Iterator[Picture]:
        yield from self._lines(kind, mean_rows(kind, rows))
        yield from self._rows(f"{kind} by task", rows)
        yield from self._rows(f"{kind} by group", groups)

    def _depths(self, task: str, cells: Sequence[CellResult]) -> Iterator[Picture]:
        placed = [cell for cell in cells if cell.outcomes and "depth" in cell.outcomes[0]["about"]]
        if not placed:
            return
        lengths = sorted({cell.description["length"] for cell in placed})
        depths = depth_rows(placed[0].description["samples"])
        panels = {
            column: depth_grid([cell for cell in placed if cell.description["column"] == column], lengths, depths)
            for column in columns(placed)
        }
        down, score = [f"{100 * depth:.0f} %" for depth in depths], placed[0].description["main"]
        about = f"{task}: {score}, in percent, by depth and length"
        yield self._grids(f"{task} by depth", about, panels, lengths, down, "depth (0 %: the beginning)")

    def _rows(self, name: str, rows: Sequence[Row]) -> Iterator[Picture]:
        shown = [row for row in rows if row.share and row.best() is not None]
        if not shown:
            return
        lengths, down = sorted({row.length for row in shown}), list(dict.fromkeys(row.task for row in shown))
        named = dict.fromkeys(column for row in shown for column in row.entries)
        panels = {column: row_grid(shown, column, down, lengths) for column in named}
        yield self._grids(name, f"{name} and length: {shown[0].score}, in percent", panels, lengths, down, "")

    def _grids(
        self,
        name: str,
        about: str,
        panels: Mapping[str, NDArray[np.float64]],
        lengths: Sequence[int],
        down: Sequence[str],
        ylabel: str,
    ) -> Picture:
        path = self._path(name)
        title = f"{self._model}, {about}"
        draw_grids(
            panels,
            path,
            lengths=lengths,
            down=down,
            title=title,
            ylabel=ylabel,
            original_length=self._original_length,
        )
        means = (
            f"{column} {100 * np.nanmean(grid):.1f}" for column, grid in panels.items() if not np.isnan(grid).all()
        )
        return Picture(path, f"{title}; a panel for each scaling, mean of its fields: {', '.join(means)}.")

    def _lines(self, task: str, rows: Sequence[Row]) -> Iterator[Picture]:
        """From two lengths on; a single one the table shows as well."""
        points = {
            column: [
                (row.length, entry.value)
                for row in rows
                if (entry := row.entries.get(column)) is not None and entry.value is not None
            ]
            for column in dict.fromkeys(column for row in rows for column in row.entries)
        }
        known = {column: line for column, line in points.items() if line}
        if len({length for line in known.values() for length, _ in line}) < 2:
            return
        path, name = self._path(f"{task} by length"), rows[0].task
        share = rows[0].share
        draw_lines(
            one_each(known),
            path,
            title=f"{self._model}, {name}",
            score=rows[0].score,
            share=share,
            original_length=self._original_length,
        )
        ends = (f"{column} {rows[-1].shown(column)}" for column in known)
        yield Picture(path, f"{name}: {rows[0].unit}, against length; at {rows[-1].length:,} tokens {', '.join(ends)}.")

    def _path(self, name: str) -> Path:
        plain = re.sub(r"[^\w.]+", "-", name).strip("-.")[:80]
        if name != plain.replace("-", " "):  # more than one name may read so
            plain += f"-{hashlib.sha256(name.encode()).hexdigest()[:8]}"
        return self._folder / f"{plain}.png"
