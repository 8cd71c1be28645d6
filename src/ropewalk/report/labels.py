"""Names at the ends of lines, moved apart where they would touch."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

_GAP = 13.0  # points between two names


def number(value: float) -> str:
    """A perplexity, as people read it."""
    return f"{value:.2f}" if value < 1e4 else f"{value:.1e}"


def label_ends(
    figure: Any,
    axes: Any,
    lines: Sequence[tuple[str, float, float, str]],
    shown: Callable[[float], str] = number,
) -> None:
    """A name and a value beside the axes for every line: its name, the x and y of its end, and its colour."""
    figure.draw_without_rendering()
    to_points = 72 / figure.dpi
    box = axes.bbox
    ends = sorted(
        (*(each * to_points for each in reversed(axes.transData.transform((x, y)))), name, x, y, colour)
        for name, x, y, colour in lines
    )
    edge = max((across for _, across, *_ in ends), default=0.0)
    places = apart([end for end, *_ in ends], gap=_GAP, within=(box.y0 * to_points, box.y1 * to_points))
    for place, (end, across, name, x, y, colour) in zip(places, ends, strict=True):
        axes.annotate(
            f"{name}  {shown(y)}",
            (x, y),
            xytext=(edge - across + 18, place - end),
            textcoords="offset points",
            color=colour,
            va="center",
            fontsize=9,
            annotation_clip=False,
            arrowprops={"arrowstyle": "-", "color": colour, "lw": 0.6, "shrinkA": 1, "shrinkB": 3, "relpos": (0, 0.5)},
        )


def apart(places: Sequence[float], gap: float, within: tuple[float, float] = (-math.inf, math.inf)) -> list[float]:
    """The places (ascending) moved as little as makes them `gap` apart: crowded ones spread around their mean.

    `within`: none ends below the first or above the second; those at the rim push the others inwards.
    """
    clusters: list[list[float]] = []  # of the places, each less its rank times the gap: equal once they are apart
    for rank, place in enumerate(places):
        clusters.append([place - rank * gap])
        while len(clusters) > 1 and _mean(clusters[-2]) > _mean(clusters[-1]):
            clusters[-2:] = [clusters[-2] + clusters[-1]]
    levels = [_mean(cluster) for cluster in clusters for _ in cluster]
    lowest, highest = within[0], within[1] - (len(levels) - 1) * gap  # a level is as far from both at every rank
    return [max(min(level, highest), lowest) + rank * gap for rank, level in enumerate(levels)]


def _mean(numbers: Sequence[float]) -> float:
    return sum(numbers) / len(numbers)


def shortened(text: str, most: int) -> str:
    """The text, its middle left out where it has more than so many characters."""
    head = (most - 1) * 2 // 3
    return text if len(text) <= most else f"{text[:head]}…{text[len(text) - (most - 1 - head) :]}"
