"""Labels at the ends of lines, moved apart where they would overlap."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from statistics import fmean
from typing import Any

_LABEL_HEIGHT = 13.0  # points from one label to the next
_LABEL_DISTANCE = 18  # points from the rightmost line end to the labels


def label_line_ends(
    figure: Any,
    axes: Any,
    line_ends: Sequence[tuple[str, float, float, str]],
    format_value: Callable[[float], str],
) -> None:
    """Write a label with the last value beside the axes for each line.

    Args:
        figure, axes: of matplotlib.
        line_ends: (label, x, y, color) of each line, x and y in data coordinates.
        format_value: turns y into text.
    """
    figure.draw_without_rendering()  # fixes the limits of the axes, which the positions depend on
    points_per_pixel = 72 / figure.dpi
    ends = []
    for label, x, y, color in line_ends:
        across, up = (pixels * points_per_pixel for pixels in axes.transData.transform((x, y)))
        ends.append((up, across, label, x, y, color))
    ends.sort()
    right_edge = max((across for _, across, *_ in ends), default=0.0)
    limits = axes.bbox.y0 * points_per_pixel, axes.bbox.y1 * points_per_pixel
    positions = spread_apart([up for up, *_ in ends], gap=_LABEL_HEIGHT, limits=limits)
    for position, (up, across, label, x, y, color) in zip(positions, ends, strict=True):
        axes.annotate(
            f"{label}  {format_value(y)}",
            (x, y),
            xytext=(right_edge - across + _LABEL_DISTANCE, position - up),
            textcoords="offset points",
            color=color,
            va="center",
            fontsize=9,
            annotation_clip=False,
            arrowprops={"arrowstyle": "-", "color": color, "lw": 0.6, "shrinkA": 1, "shrinkB": 3, "relpos": (0, 0.5)},
        )


def spread_apart(
    positions: Sequence[float], gap: float, limits: tuple[float, float] = (-math.inf, math.inf)
) -> list[float]:
    """Return positions that are at least `gap` apart, each moved as little as possible.

    A crowded cluster is spread around its mean, as in isotonic regression by pooling adjacent violators.

    Args:
        positions: in ascending order.
        gap: smallest distance between two of the returned positions.
        limits: lowest and highest position to return; a cluster at a limit is pushed inwards.
    """
    # With rank * gap subtracted, positions that are exactly `gap` apart are equal, and only the order must be restored.
    clusters: list[list[float]] = []
    for rank, position in enumerate(positions):
        clusters.append([position - rank * gap])
        while len(clusters) > 1 and fmean(clusters[-2]) > fmean(clusters[-1]):
            clusters[-2:] = [clusters[-2] + clusters[-1]]
    levels = [fmean(cluster) for cluster in clusters for _ in cluster]
    lowest, highest = limits[0], limits[1] - (len(levels) - 1) * gap
    return [max(min(level, highest), lowest) + rank * gap for rank, level in enumerate(levels)]
