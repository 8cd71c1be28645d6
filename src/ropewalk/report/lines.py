"""A score against length: a line for each scaling."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ropewalk.lengths import length_name
from ropewalk.report.figures import colours, new_figure, plain, save
from ropewalk.report.labels import label_ends, number, shortened

Points = Sequence[tuple[int, float]]  # length in tokens and value, by length
_MARKERS = "osD^vPX<>p"
_NAME = 44  # characters beside the picture
_WIDE = 8  # the longest length over the shortest, from which lengths are spread by their ratio


@dataclass(frozen=True)
class Line:
    """One line: its name, its points, and how matplotlib is to draw it."""

    name: str
    points: Points
    colour: str
    style: str


def one_each(lines: Mapping[str, Points]) -> list[Line]:
    """A colour and a marker of its own for each scaling."""
    colour = colours([*lines])
    return [
        Line(name, points, colour[name], f"{_MARKERS[at % len(_MARKERS)]}-")
        for at, (name, points) in enumerate(lines.items())
    ]


def draw_lines(
    lines: Sequence[Line], path: Path, *, title: str, score: str, share: bool, original_length: int | None
) -> None:
    """Draw the lines, every one labelled at its end, the trained length marked.

    `share`: values run from 0 to 1 and are drawn in percent; others are above 0 and drawn on a log scale.
    """
    figure = new_figure(9.5, 5.0)
    axes = figure.add_axes((0.08, 0.1, 0.67, 0.8))
    ends = []
    for line in lines:
        x, y = zip(*line.points, strict=True)
        wide = 2.2 if line.name == "none" else 1.6
        axes.plot(x, y, line.style, color=line.colour, markersize=5, linewidth=wide)
        ends.append((plain(shortened(line.name, _NAME)), x[-1], y[-1], line.colour))
    _lengths_across(axes, sorted({length for line in lines for length, _ in line.points}), original_length)
    _percent_up(axes) if share else _log_up(axes)
    axes.set_ylabel(f"{score}, %" if share else f"{score} (log scale)")
    axes.set_title(plain(title), loc="left", pad=20)
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    label_ends(figure, axes, ends, _percent if share else number)
    save(figure, path)


def _lengths_across(axes: Any, lengths: Sequence[int], original_length: int | None) -> None:
    """Lengths on the x axis, and a line at the one that the model was trained on."""
    if lengths[-1] >= _WIDE * lengths[0]:
        axes.set_xscale("log", base=2)
    axes.set_xticks(lengths, [length_name(length) for length in lengths])
    axes.set_xticks([], minor=True)
    axes.set_xlabel("length in tokens")
    if original_length is not None and lengths[0] <= original_length <= lengths[-1]:
        axes.axvline(original_length, color="#888888", linestyle="--", linewidth=1)
        trained = f"trained on {original_length:,}"
        above = axes.get_xaxis_transform()
        axes.text(
            original_length, 1.01, trained, transform=above, color="#666666", ha="center", va="bottom", fontsize=9
        )


def _percent_up(axes: Any) -> None:
    axes.set_ylim(-0.03, 1.03)
    axes.set_yticks([part / 5 for part in range(6)], [f"{20 * part}" for part in range(6)])


def _log_up(axes: Any) -> None:
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    axes.set_yscale("log")
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 3, 5, 7)))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.yaxis.set_minor_formatter(NullFormatter())


def _percent(value: float) -> str:
    return f"{100 * value:.1f} %"
