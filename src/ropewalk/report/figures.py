"""What all pictures share: matplotlib figures without a display, PNG files, and colors."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ropewalk.errors import MissingPackageError
from ropewalk.files import replace_file_atomically

DPI = 150


def new_figure(width: float, height: float, **options: Any) -> Any:
    """Return a matplotlib figure of `width` x `height` inches that needs no display and no global state.

    Raises MissingPackageError if matplotlib is not installed.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise MissingPackageError("drawing a picture", "matplotlib", "pip install 'ropewalk[plot]'") from None

    return Figure(figsize=(width, height), dpi=DPI, **options)


def save_figure(figure: Any, path: Path) -> None:
    """Write a PNG whose size includes every label, and replace an earlier file only when it is complete."""
    with replace_file_atomically(path, "wb") as file:
        figure.savefig(file, format="png", bbox_inches="tight", pad_inches=0.15)


def escape_mathtext(text: str) -> str:
    """Return the text with its dollar signs escaped: matplotlib would typeset what is between two of them."""
    return text.replace("$", r"\$")


def assign_colors(columns: Sequence[str]) -> dict[str, str]:
    """Return a color for each scaling, the same in every picture of a report; `none` is nearly black."""
    scaled = [column for column in columns if column != "none"]
    return {"none": "#222222", **{column: f"C{index % 10}" for index, column in enumerate(scaled)}}
