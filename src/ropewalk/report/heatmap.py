"""Heat maps of shares: depth against length or task against length, with one panel per scaling."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ropewalk.evaluate.evaluation_store import CellResult
from ropewalk.lengths import format_length
from ropewalk.report.figures import escape_mathtext, new_figure, save_figure
from ropewalk.report.formatting import shorten_middle
from ropewalk.report.score_rows import ScoreRow, sample_score

MAX_DEPTHS = 11
# All sizes are in inches.
_MAX_WIDTH = 12.5
_MIN_WIDTH, _MIN_HEIGHT = 5.5, 3.2  # room for title and axis labels
_CELL_WIDTH, _CELL_HEIGHT = 0.42, 0.28  # room for "100"
_MIN_NUMBER_WIDTH = 0.3  # narrower cells show no number
_MAX_PANEL_WIDTH, _MIN_PANEL_WIDTH = 6.0, 1.9
_PANEL_GAP = 0.2
_MARGIN = 0.95  # left of and above the cells, for tick labels and one line of heading
_CHARACTER_WIDTH = 0.085  # of a panel's heading
_TICK_CHARACTER_WIDTH = 0.07


def depth_bins(samples: int) -> list[float]:
    """Return the depths (0: beginning, 1: end of the text) that a heat map has rows for: one per sample, at most 11."""
    count = min(samples, MAX_DEPTHS)
    return [index / (count - 1) for index in range(count)] if count > 1 else [0.5]


def depth_grid(cells: Sequence[CellResult], lengths: Sequence[int], depths: Sequence[float]) -> NDArray[np.float64]:
    """Return the mean of the main score, [depth, length]; NaN where no sample is finished.

    Each sample counts in the row that is nearest to its depth.
    """
    total, count = np.zeros((2, len(depths), len(lengths)))
    for cell in cells:
        column = lengths.index(cell.description["length"])
        for sample in cell.sample_results:
            if "depth" not in sample["about"]:
                continue
            row = math.floor(sample["about"]["depth"] * (len(depths) - 1) + 0.5)
            total[row, column] += sample_score(sample, cell.description["main"]) or 0.0
            count[row, column] += 1
    return np.divide(total, count, out=np.full_like(total, np.nan), where=count > 0)


def task_grid(
    rows: Sequence[ScoreRow], column: str, tasks: Sequence[str], lengths: Sequence[int]
) -> NDArray[np.float64]:
    """Return the score of each task under one scaling, [task, length]; NaN where it is not known."""
    grid = np.full((len(tasks), len(lengths)), np.nan)
    for row in rows:
        if column in row.values:
            grid[tasks.index(row.task), lengths.index(row.length)] = row.values[column]
    return grid


def draw_heatmaps(
    panels: Mapping[str, NDArray[np.float64]],
    path: Path,
    *,
    lengths: Sequence[int],
    row_labels: Sequence[str],
    title: str,
    ylabel: str,
    original_length: int | None,
) -> None:
    """Write a PNG with one panel per scaling, all with the same color scale.

    Cells show their number in percent if they are wide enough; cells without a value are hatched; a dashed line
    separates the lengths past the original length.

    Args:
        panels: shares from 0 to 1, [row, length], by scaling.
        path: file to write.
        lengths: tokens, for the columns.
        row_labels: for the rows.
        title: above the picture.
        ylabel: beside it, what the rows are.
        original_length: tokens that the model was trained on, if known.
    """
    cell_width = min(_CELL_WIDTH, _MAX_PANEL_WIDTH / len(lengths))
    panel_width = max(cell_width * len(lengths), _MIN_PANEL_WIDTH)
    left_margin = _MARGIN + _TICK_CHARACTER_WIDTH * max(map(len, row_labels))
    panel_columns = max(1, min(len(panels), int((_MAX_WIDTH - left_margin) / (panel_width + _PANEL_GAP))))
    panel_rows = math.ceil(len(panels) / panel_columns)
    headings = {column: _wrap_heading(column, panel_width) for column in panels}
    top_margin = _MARGIN + 0.2 * max(heading.count("\n") for heading in headings.values())
    width = panel_columns * (panel_width + _PANEL_GAP) + left_margin
    height = panel_rows * (_CELL_HEIGHT * len(row_labels) + top_margin) + 0.5
    figure = new_figure(max(width, _MIN_WIDTH), max(height, _MIN_HEIGHT), layout="constrained")

    grid = figure.subplots(panel_rows, panel_columns, squeeze=False, sharey=True)
    trained_columns = _count_trained(lengths, original_length)
    for axes, (column, values) in zip(grid.flat, panels.items(), strict=False):
        image = _draw_panel(axes, values, show_numbers=panel_width / len(lengths) >= _MIN_NUMBER_WIDTH)
        axes.set_title(headings[column], fontsize=10)
        axes.set_xticks(range(len(lengths)), [format_length(length) for length in lengths], fontsize=8)
        axes.set_yticks(range(len(row_labels)), [escape_mathtext(label) for label in row_labels], fontsize=8)
        if trained_columns is not None:
            axes.axvline(trained_columns - 0.5, color="black", linestyle=(0, (4, 2)), linewidth=1.8)
    for axes in grid.flat[len(panels) :]:
        axes.set_visible(False)

    legend = ""
    if trained_columns is not None:
        legend = f"\nright of the dashed line: past the {original_length:,} tokens it was trained on"
    figure.suptitle(escape_mathtext(title) + legend, x=0.01, ha="left", fontsize=11)
    figure.supxlabel("length in tokens", fontsize=9)
    figure.supylabel(ylabel, fontsize=9)
    color_bar = figure.colorbar(image, ax=grid, ticks=[0, 0.25, 0.5, 0.75, 1], pad=0.02, aspect=25 * panel_rows)
    color_bar.set_ticklabels(["0", "25", "50", "75", "100"], fontsize=8)
    color_bar.set_label("%", rotation=0)
    save_figure(figure, path)


def _wrap_heading(column: str, width: float) -> str:
    """Return the name of a scaling in lines that fit a panel of `width` inches."""
    characters = int(width / _CHARACTER_WIDTH)
    return escape_mathtext("\n".join(textwrap.wrap(shorten_middle(column, 3 * characters), characters)))


def _draw_panel(axes: Any, values: NDArray[np.float64], *, show_numbers: bool) -> Any:
    """Draw one heat map and return its image, for the color bar."""
    image = axes.imshow(values, cmap="viridis", vmin=0, vmax=1, aspect="auto")
    axes.patch.set(facecolor="#e4e4e4", edgecolor="#a8a8a8", hatch="////", linewidth=0)
    rows, columns = values.shape
    axes.set_xticks(np.arange(columns + 1) - 0.5, minor=True)
    axes.set_yticks(np.arange(rows + 1) - 0.5, minor=True)
    axes.grid(which="minor", color="white", linewidth=1)
    axes.tick_params(which="both", length=0)
    axes.spines[:].set_visible(False)
    for (row, column), value in np.ndenumerate(values):
        if show_numbers and np.isfinite(value):
            color = "white" if value < 0.6 else "black"  # viridis is dark in its lower half
            axes.text(column, row, f"{100 * value:.0f}", ha="center", va="center", fontsize=8, color=color)
    return image


def _count_trained(lengths: Sequence[int], original_length: int | None) -> int | None:
    """Return how many lengths are within the original length, or None if all or none of them are."""
    count = sum(length <= (original_length or 0) for length in lengths)
    return count if 0 < count < len(lengths) else None
