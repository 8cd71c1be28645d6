"""A line chart of a score against length, one line per scaling."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ropewalk.lengths import format_length
from ropewalk.report.end_labels import label_line_ends
from ropewalk.report.figures import assign_colors, escape_mathtext, new_figure, save_figure
from ropewalk.report.formatting import format_number, shorten_middle

Points = Sequence[tuple[int, float]]  # (length in tokens, value), by rising length
_MARKERS = "osD^vPX<>p"
_MAX_LABEL_CHARACTERS = 44
_MIN_RATIO_FOR_LOG = 8  # longest over shortest length from which the x axis is logarithmic


@dataclass(frozen=True)
class Line:
    """One line of the chart.

    Attributes:
        label: written at the end of the line.
        points: (length in tokens, value).
        color: a matplotlib color.
        style: a matplotlib format string for marker and line, as in "o-".
    """

    label: str
    points: Points
    color: str
    style: str


def style_lines(points_by_column: Mapping[str, Points]) -> list[Line]:
    """Return one line per scaling, each with another color and marker."""
    colors = assign_colors(list(points_by_column))
    return [
        Line(column, points, colors[column], f"{_MARKERS[index % len(_MARKERS)]}-")
        for index, (column, points) in enumerate(points_by_column.items())
    ]


def draw_line_chart(
    lines: Sequence[Line], path: Path, *, title: str, score: str, is_share: bool, original_length: int | None
) -> None:
    """Write the chart as a PNG, with a label at the end of each line and a mark at the original length.

    Args:
        lines: at least one, each with at least one point.
        path: file to write.
        title: above the chart.
        score: name of the values, for the y axis.
        is_share: True if values lie between 0 and 1, drawn in percent; others must be above 0, drawn on a log scale.
        original_length: tokens that the model was trained on, if known.
    """
    figure = new_figure(9.5, 5.0)
    axes = figure.add_axes((0.08, 0.1, 0.67, 0.8))
    ends = []
    for line in lines:
        x, y = zip(*line.points, strict=True)
        width = 2.2 if line.label == "none" else 1.6
        axes.plot(x, y, line.style, color=line.color, markersize=5, linewidth=width)
        ends.append((escape_mathtext(shorten_middle(line.label, _MAX_LABEL_CHARACTERS)), x[-1], y[-1], line.color))
    _set_length_axis(axes, sorted({length for line in lines for length, _ in line.points}), original_length)
    if is_share:
        axes.set_ylim(-0.03, 1.03)
        axes.set_yticks([step / 5 for step in range(6)], [f"{20 * step}" for step in range(6)])
        axes.set_ylabel(f"{score}, %")
    else:
        _set_log_axis(axes)
        axes.set_ylabel(f"{score} (log scale)")
    axes.set_title(escape_mathtext(title), loc="left", pad=20)
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    label_line_ends(figure, axes, ends, _format_percent if is_share else format_number)
    save_figure(figure, path)


def _set_length_axis(axes: Any, lengths: Sequence[int], original_length: int | None) -> None:
    """Put the lengths on the x axis, and a dashed line at the original length if it lies among them."""
    if lengths[-1] >= _MIN_RATIO_FOR_LOG * lengths[0]:
        axes.set_xscale("log", base=2)
    axes.set_xticks(lengths, [format_length(length) for length in lengths])
    axes.set_xticks([], minor=True)
    axes.set_xlabel("length in tokens")
    if original_length is not None and lengths[0] <= original_length <= lengths[-1]:
        axes.axvline(original_length, color="#888888", linestyle="--", linewidth=1)
        above = axes.get_xaxis_transform()  # x in data coordinates, y in axes coordinates
        style = {"color": "#666666", "ha": "center", "va": "bottom", "fontsize": 9}
        axes.text(original_length, 1.01, f"trained on {original_length:,}", transform=above, **style)


def _set_log_axis(axes: Any) -> None:
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    axes.set_yscale("log")
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 3, 5, 7)))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.yaxis.set_minor_formatter(NullFormatter())


def _format_percent(value: float) -> str:
    return f"{100 * value:.1f} %"
