"""Shares as fields of colour: depth against length, tasks against length; a panel for each scaling."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ropewalk.evaluate.store import CellResult
from ropewalk.lengths import length_name
from ropewalk.report.evaluation import Row, score_of
from ropewalk.report.figures import new_figure, plain, save
from ropewalk.report.labels import shortened

MOST_DEPTHS = 11
_WIDTH = 12.5  # inches, at most
_LEAST = 5.5, 3.2  # inches, across and down: room for title and names
_FIELD = 0.42, 0.28  # inches, across and down: room for "100"
_ROOM = 0.3  # inches across, that a number needs
_NAMES = 0.95  # inches beside and above the fields of a panel, for what is written there
_LETTER = 0.085  # inches, a letter of a panel's name


def depth_rows(samples: int) -> list[float]:
    """The depths, 0 (the beginning) to 1, that a heat map has rows for: those of the samples, at most 11."""
    count = min(samples, MOST_DEPTHS)
    return [at / (count - 1) for at in range(count)] if count > 1 else [0.5]


def depth_grid(cells: Sequence[CellResult], lengths: Sequence[int], depths: Sequence[float]) -> NDArray[np.float64]:
    """The mean of the main score in each field, NaN where no sample is in, [depth, length].

    A sample counts in the row that is nearest to its depth.
    """
    total, count = np.zeros((2, len(depths), len(lengths)))
    for cell in cells:
        column = lengths.index(cell.description["length"])
        for outcome in cell.outcomes:
            row = math.floor(outcome["about"]["depth"] * (len(depths) - 1) + 0.5)
            total[row, column] += score_of(outcome, cell.description["main"]) or 0.0
            count[row, column] += 1
    return np.divide(total, count, out=np.full_like(total, np.nan), where=count > 0)


def row_grid(rows: Sequence[Row], column: str, names: Sequence[str], lengths: Sequence[int]) -> NDArray[np.float64]:
    """The value of each row under one scaling, NaN where it is not known, [task, length]."""
    grid = np.full((len(names), len(lengths)), np.nan)
    for row in rows:
        entry = row.entries.get(column)
        if entry is not None and entry.value is not None:
            grid[names.index(row.task), lengths.index(row.length)] = entry.value
    return grid


def draw_grids(
    panels: Mapping[str, NDArray[np.float64]],
    path: Path,
    *,
    lengths: Sequence[int],
    down: Sequence[str],
    title: str,
    ylabel: str,
    original_length: int | None,
) -> None:
    """A panel for each scaling, by its name, of shares [down, length]; one scale of colour for all of them.

    The number stands in its field where there is room; a field without a value is hatched; a line stands where
    lengths pass the trained one.
    """
    across, high = min(_FIELD[0], 6 / len(lengths)), _FIELD[1]
    wide = max(across * len(lengths), 1.9)
    beside = _NAMES + 0.07 * max(map(len, down))
    side_by_side = max(1, min(len(panels), int((_WIDTH - beside) / (wide + 0.2))))
    deep = math.ceil(len(panels) / side_by_side)
    headings = {column: _heading(column, wide) for column in panels}
    above = _NAMES + 0.2 * max(heading.count("\n") for heading in headings.values())
    width, height = side_by_side * (wide + 0.2) + beside, deep * (high * len(down) + above) + 0.5
    figure = new_figure(max(width, _LEAST[0]), max(height, _LEAST[1]), layout="constrained")
    grid = figure.subplots(deep, side_by_side, squeeze=False, sharey=True)
    for axes, (column, values) in zip(grid.flat, panels.items(), strict=False):
        image = _draw_fields(axes, values, numbers=wide / len(lengths) >= _ROOM)
        axes.set_title(headings[column], fontsize=10)
        axes.set_xticks(range(len(lengths)), [length_name(length) for length in lengths], fontsize=8)
        axes.set_yticks(range(len(down)), [plain(name) for name in down], fontsize=8)
        _mark_trained(axes, lengths, original_length)
    for axes in grid.flat[len(panels) :]:
        axes.set_visible(False)
    trained = _crossing(lengths, original_length) is not None
    marked = f"\nright of the dashed line: past the {original_length:,} tokens it was trained on" if trained else ""
    figure.suptitle(plain(title) + marked, x=0.01, ha="left", fontsize=11)
    figure.supxlabel("length in tokens", fontsize=9)
    figure.supylabel(ylabel, fontsize=9)
    bar = figure.colorbar(image, ax=grid, ticks=[0, 0.25, 0.5, 0.75, 1], pad=0.02, aspect=25 * deep)
    bar.set_ticklabels(["0", "25", "50", "75", "100"], fontsize=8)
    bar.set_label("%", rotation=0)
    save(figure, path)


def _heading(column: str, wide: float) -> str:
    """The name of a panel in lines that are no wider than it."""
    letters = int(wide / _LETTER)
    return plain("\n".join(textwrap.wrap(shortened(column, 3 * letters), letters)))


def _draw_fields(axes: Any, values: NDArray[np.float64], *, numbers: bool) -> Any:
    image = axes.imshow(values, cmap="viridis", vmin=0, vmax=1, aspect="auto")
    axes.patch.set(facecolor="#e4e4e4", edgecolor="#a8a8a8", hatch="////", linewidth=0)
    down, across = values.shape
    axes.set_xticks(np.arange(across + 1) - 0.5, minor=True)
    axes.set_yticks(np.arange(down + 1) - 0.5, minor=True)
    axes.grid(which="minor", color="white", linewidth=1)
    axes.tick_params(which="both", length=0)
    axes.spines[:].set_visible(False)
    for (row, column), value in np.ndenumerate(values):
        if numbers and np.isfinite(value):
            dark = value < 0.6  # the lower half of viridis
            shown = f"{100 * value:.0f}"
            axes.text(column, row, shown, ha="center", va="center", fontsize=8, color="white" if dark else "black")
    return image


def _crossing(lengths: Sequence[int], original_length: int | None) -> int | None:
    """How many of the lengths are within the trained one, None where it does not lie between two of them."""
    within = sum(length <= (original_length or 0) for length in lengths)
    return within if 0 < within < len(lengths) else None


def _mark_trained(axes: Any, lengths: Sequence[int], original_length: int | None) -> None:
    crossing = _crossing(lengths, original_length)
    if crossing is not None:
        axes.axvline(crossing - 0.5, color="black", linestyle=(0, (4, 2)), linewidth=1.8)
