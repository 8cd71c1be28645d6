"""Choose the pictures of an evaluation and draw them into a folder."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from ropewalk.evaluate.evaluation_store import CellResult
from ropewalk.report.formatting import shorten_middle
from ropewalk.report.grouping import group_by_column, group_by_kind, is_suite
from ropewalk.report.heatmap import depth_bins, depth_grid, draw_heatmaps, task_grid
from ropewalk.report.line_chart import draw_line_chart, style_lines
from ropewalk.report.score_rows import ScoreRow, group_rows, mean_rows, task_rows

Picture: TypeAlias = tuple[Path, str]  # a PNG file, and its text for screen readers

_MAX_MODEL_CHARACTERS = 48
_MAX_FILE_NAME_CHARACTERS = 80


class PictureWriter:
    """Draws the pictures of one model's evaluation into a folder."""

    def __init__(self, folder: Path, model: str, original_length: int | None) -> None:
        """`original_length`: tokens that the model was trained on, if known."""
        self._folder = folder
        self._model = shorten_middle(model, _MAX_MODEL_CHARACTERS)
        self._original_length = original_length

    def draw(self, cells: Sequence[CellResult]) -> Iterator[Picture]:
        """Draw every picture that the cells have data for; yield its path and its text for screen readers.

        A task whose samples have a depth gets a heat map, every task a line chart; a suite of tasks gets a line chart
        of its mean and heat maps by task and by group.
        """
        for kind, tasks in group_by_kind(cells).items():
            if is_suite(kind) and len(tasks) > 1:
                rows = [row for task, task_cells in tasks.items() for row in task_rows(task, task_cells)]
                yield from self._draw_lines(kind, mean_rows(kind, rows))
                yield from self._draw_task_heatmap(f"{kind} by task", rows)
                yield from self._draw_task_heatmap(f"{kind} by group", group_rows(tasks))
                continue
            for task, task_cells in tasks.items():
                rows = task_rows(task, task_cells)
                if rows[0].is_share:
                    yield from self._draw_depth_heatmap(task, task_cells)
                yield from self._draw_lines(task, rows)

    def _draw_depth_heatmap(self, task: str, cells: Sequence[CellResult]) -> Iterator[Picture]:
        cells = [cell for cell in cells if cell.sample_results and "depth" in cell.sample_results[0]["about"]]
        if not cells:
            return
        lengths = sorted({cell.description["length"] for cell in cells})
        depths = depth_bins(cells[0].description["samples"])
        panels = {
            column: depth_grid(column_cells, lengths, depths) for column, column_cells in group_by_column(cells).items()
        }
        title = f"{task}: {cells[0].description['main']}, in percent, by depth and length"
        labels = [f"{100 * depth:.0f} %" for depth in depths]
        yield self._draw_heatmaps(f"{task} by depth", title, panels, lengths, labels, "depth (0 %: the beginning)")

    def _draw_task_heatmap(self, name: str, rows: Sequence[ScoreRow]) -> Iterator[Picture]:
        rows = [row for row in rows if row.is_share and row.best_value() is not None]
        if not rows:
            return
        lengths = sorted({row.length for row in rows})
        tasks = list(dict.fromkeys(row.task for row in rows))
        panels = {column: task_grid(rows, column, tasks, lengths) for column in _list_row_columns(rows)}
        title = f"{name} and length: {rows[0].score}, in percent"
        yield self._draw_heatmaps(name, title, panels, lengths, tasks, "")

    def _draw_heatmaps(
        self,
        name: str,
        title: str,
        panels: Mapping[str, NDArray[np.float64]],
        lengths: Sequence[int],
        row_labels: Sequence[str],
        ylabel: str,
    ) -> Picture:
        """Draw the panels and return the picture."""
        path = self._path(name)
        title = f"{self._model}, {title}"
        draw_heatmaps(
            panels,
            path,
            lengths=lengths,
            row_labels=row_labels,
            title=title,
            ylabel=ylabel,
            original_length=self._original_length,
        )
        known = {column: grid for column, grid in panels.items() if not np.isnan(grid).all()}
        means = ", ".join(f"{column} {100 * np.nanmean(grid):.1f}" for column, grid in known.items())
        return path, f"{title}; one panel per scaling, the mean of its cells: {means}."

    def _draw_lines(self, name: str, rows: Sequence[ScoreRow]) -> Iterator[Picture]:
        """Draw a score against length if there are values at two lengths or more."""
        points: dict[str, list[tuple[int, float]]] = {}
        for column in _list_row_columns(rows):
            line = [(row.length, row.values[column]) for row in rows if column in row.values]
            if line:
                points[column] = line
        if len({length for line in points.values() for length, _ in line}) < 2:
            return
        first, last = rows[0], rows[-1]
        path = self._path(f"{name} by length")
        draw_line_chart(
            style_lines(points),
            path,
            title=f"{self._model}, {first.task}",
            score=first.score,
            is_share=first.is_share,
            original_length=self._original_length,
        )
        ends = ", ".join(f"{column} {last.format(column)}" for column in points)
        yield path, f"{first.task}: {first.heading}, against length; at {last.length:,} tokens {ends}."

    def _path(self, name: str) -> Path:
        """Return the path of a picture, with a digest of its name if other names could yield the same file name."""
        file_name = re.sub(r"[^\w.]+", "-", name).strip("-.")[:_MAX_FILE_NAME_CHARACTERS]
        if name != file_name.replace("-", " "):
            file_name += f"-{hashlib.sha256(name.encode()).hexdigest()[:8]}"
        return self._folder / f"{file_name}.png"


def _list_row_columns(rows: Sequence[ScoreRow]) -> list[str]:
    return list(dict.fromkeys(column for row in rows for column in row.entries))
