"""The picture of `ropewalk bench rotate`: how near each contestant comes to the speed of memory."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ropewalk.report.figures import new_figure, save

_COLOURS = {"ours": "#d1495b", "peer": "#30638e"}


def draw_speed(rows: Sequence[Mapping[str, Any]], path: Path, device: str) -> None:
    """A panel for each shape and dtype of the prefills: speed against a plain copy, a mark for each length."""
    prefills = [row for row in rows if row["tokens"] > 1 and "reason" not in row]
    down = list(dict.fromkeys(row["dtype"] for row in prefills))
    across = list(dict.fromkeys(row["shape"] for row in prefills))
    lengths = sorted({row["tokens"] for row in prefills})
    timed = {
        name: found["role"]
        for row in reversed(prefills)
        for name, found in row["contestants"].items()
        if "of_limit" in found
    }
    names = [name for name in (prefills[0]["contestants"] if prefills else ()) if name in timed][::-1]
    if not names:
        return
    figure = new_figure(3.1 * len(across) + 1.6, (0.32 * len(names) + 0.9) * len(down) + 0.9)
    panels = figure.subplots(len(down), len(across), squeeze=False, sharex=True, sharey=True)
    for row in prefills:
        axes = panels[down.index(row["dtype"])][across.index(row["shape"])]
        axes.set_title(f"{row['shape']}, {row['dtype']}", fontsize=9)
        marker = "os^Dv"[lengths.index(row["tokens"]) % 5]
        for at, name in enumerate(names):
            ratio = row["contestants"][name].get("of_limit")
            if ratio is not None:
                spread = [[ratio["median"] - ratio["low"]], [ratio["high"] - ratio["median"]]]
                colour = _COLOURS[timed[name]]
                axes.errorbar(ratio["median"], at, xerr=spread, fmt=marker, color=colour, markersize=5, capsize=2)
    for axes in panels.flat:
        axes.set_xscale("log")
        axes.axvline(1, color="#222222", linewidth=1)
        axes.set_yticks(range(len(names)), names, fontsize=8)
        axes.set_xticks([0.02, 0.05, 0.1, 0.2, 0.5, 1, 2], ["1/50", "1/20", "1/10", "1/5", "1/2", "1", "2"], fontsize=8)
        axes.minorticks_off()
        axes.grid(axis="x", alpha=0.3)
    for at, length in enumerate(lengths):
        panels[0][0].plot([], [], "os^Dv"[at % 5], color="#666666", label=f"{length:,} tokens", markersize=5)
    figure.legend(loc="upper right", fontsize=8, ncols=len(lengths), frameon=False)
    figure.suptitle(f"One rotation of q and k on {device}", x=0.01, ha="left", fontsize=11)
    figure.supxlabel("speed against a plain copy of the same bytes (the line; bars: quartiles)", fontsize=9)
    figure.tight_layout(rect=(0, 0, 1, 0.99))
    save(figure, path)
