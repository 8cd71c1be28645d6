"""Measured results beside the theory: the curve and the heat maps of a results folder."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from ropewalk.errors import InputError
from ropewalk.evaluate.curve_store import read_curve
from ropewalk.evaluate.evaluation_store import CellResult, EvaluationStore
from ropewalk.report.curve import row_label
from ropewalk.report.grouping import group_by_column, group_by_task
from ropewalk.report.heatmap import depth_bins, depth_grid


def build_curve(folder: Path) -> dict[str, Any]:
    """Return the perplexities of a curve by scaling. Raises InputError for a folder without a curve."""
    header, rows = read_curve(folder, "curve")
    lengths = sorted({row["length"] for row in rows})
    if not lengths:
        raise InputError("curve", str(folder), "a folder with measured rows")
    values = {(row_label(row), row["length"]): row["ppl"] for row in rows}
    labels = list(dict.fromkeys(row_label(row) for row in rows))
    return {
        "model": header["model"],
        "text": header["text"],
        "dtype": header["dtype"],
        "x": lengths,
        "labels": labels,
        "lines": [[_finite(values.get((label, length))) for length in lengths] for label in labels],
    }


def _finite(value: float | None) -> float | None:
    """Return the value, or None for NaN and infinity, which JSON does not have."""
    return value if value is not None and math.isfinite(value) else None


def build_heatmaps(folder: Path) -> list[dict[str, Any]]:
    """Return a heat map of depth and length for each task with a depth: shares in percent, null where unknown.

    Raises InputError for a folder without results.
    """
    with EvaluationStore(folder) as store:
        return [
            heatmap
            for task, cells in group_by_task(store.cells()).items()
            if (heatmap := _build_heatmap(task, cells)) is not None
        ]


def _build_heatmap(task: str, cells: list[CellResult]) -> dict[str, Any] | None:
    with_depth = [cell for cell in cells if cell.sample_results and "depth" in cell.sample_results[0]["about"]]
    if not with_depth:
        return None
    lengths = sorted({cell.description["length"] for cell in with_depth})
    depths = depth_bins(with_depth[0].description["samples"])
    panels = {
        column: [[None if math.isnan(share) else round(100 * share) for share in row] for row in grid.tolist()]
        for column, column_cells in group_by_column(with_depth).items()
        for grid in [depth_grid(column_cells, lengths, depths)]
    }
    return {"task": task, "lengths": lengths, "depths": [round(100 * depth) for depth in depths], "panels": panels}
