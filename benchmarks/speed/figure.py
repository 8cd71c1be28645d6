"""The picture of `rotate`: the speed of each implementation relative to a plain copy."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ropewalk.report.figures import new_figure, save_figure

_COLORS = {"ours": "#d1495b", "peer": "#30638e"}
_MARKERS = "os^Dv"  # one per length
_TICKS = {0.02: "1/50", 0.05: "1/20", 0.1: "1/10", 0.2: "1/5", 0.5: "1/2", 1: "1", 2: "2"}


def draw_rotation_speed(rows: Sequence[Mapping[str, Any]], path: Path, device: str) -> None:
    """Draw the prefill cases: a panel per shape and dtype, a mark per implementation and length.

    Nothing is drawn if nothing was timed.
    """
    prefills = [row for row in rows if row["tokens"] > 1 and "reason" not in row]
    names = _timed_implementations(prefills)
    if not names:
        return
    dtypes = list(dict.fromkeys(row["dtype"] for row in prefills))
    shapes = list(dict.fromkeys(row["shape"] for row in prefills))
    lengths = sorted({row["tokens"] for row in prefills})
    markers = {length: _MARKERS[index % len(_MARKERS)] for index, length in enumerate(lengths)}
    figure = new_figure(3.1 * len(shapes) + 1.6, (0.32 * len(names) + 0.9) * len(dtypes) + 0.9)
    panels = figure.subplots(len(dtypes), len(shapes), squeeze=False, sharex=True, sharey=True)
    for row in prefills:
        axes = panels[dtypes.index(row["dtype"])][shapes.index(row["shape"])]
        axes.set_title(f"{row['shape']}, {row['dtype']}", fontsize=9)
        for y, name in enumerate(names):
            found = row["contestants"][name]
            ratio = found.get("of_limit")
            if ratio is not None:
                error = [[ratio["median"] - ratio["low"]], [ratio["high"] - ratio["median"]]]
                style = {"fmt": markers[row["tokens"]], "color": _COLORS[found["role"]], "markersize": 5, "capsize": 2}
                axes.errorbar(ratio["median"], y, xerr=error, **style)
    for axes in panels.flat:
        axes.set_xscale("log")
        axes.axvline(1, color="#222222", linewidth=1)
        axes.set_yticks(range(len(names)), names, fontsize=8)
        axes.set_xticks(list(_TICKS), list(_TICKS.values()), fontsize=8)
        axes.minorticks_off()
        axes.grid(axis="x", alpha=0.3)
    for length, marker in markers.items():
        panels[0][0].plot([], [], marker, color="#666666", label=f"{length:,} tokens", markersize=5)
    figure.legend(loc="upper right", fontsize=8, ncols=len(lengths), frameon=False)
    figure.suptitle(f"One rotation of q and k on {device}", x=0.01, ha="left", fontsize=11)
    figure.supxlabel("speed relative to a plain copy of the same bytes (the line); bars are quartiles", fontsize=9)
    figure.tight_layout(rect=(0, 0, 1, 0.99))
    save_figure(figure, path)


def _timed_implementations(prefills: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return the names of those that were timed in any case, from the bottom of the picture to the top."""
    if not prefills:
        return []
    timed = {name for row in prefills for name, found in row["contestants"].items() if "of_limit" in found}
    return [name for name in prefills[0]["contestants"] if name in timed][::-1]
