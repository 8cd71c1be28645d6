"""What every picture shares: a figure without a window, and a file that is whole or not there."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

DPI = 150


def new_figure(width: float, height: float, **options: Any) -> Any:
    """A figure of so many inches that needs no display."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), dpi=DPI, **options)
    FigureCanvasAgg(figure)
    return figure


def save(figure: Any, path: Path) -> None:
    """Write a PNG as wide as what is drawn, so that no name is cut."""
    beside = path.with_name(f".{path.name}")
    figure.savefig(beside, format="png", bbox_inches="tight", pad_inches=0.15)
    beside.replace(path)


def plain(text: str) -> str:
    """The text, to be drawn as it stands: without it a pair of dollar signs would be read as a formula."""
    return text.replace("$", r"\$")


def colours(columns: Sequence[str]) -> dict[str, str]:
    """A colour for each scaling, the same in every picture of a report; none at all is nearly black."""
    scaled = [column for column in columns if column != "none"]
    return {"none": "#222222", **{column: f"C{at % 10}" for at, column in enumerate(scaled)}}
