"""A perplexity curve as a table, a figure and a sentence."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.table import Table

from ropewalk.evaluate.perplexity import Row
from ropewalk.report.lengths import length_name


def label(row: Row) -> str:
    """The scaling, and how the text was read where that was through the cache."""
    followed = f", {row['policy']}" if row["policy"] else ""
    return row["scaling"] if row["chunk"] is None else f"{row['scaling']} (cached by {row['chunk']}{followed})"


def best_of_each_length(rows: Sequence[Row]) -> dict[int, float]:
    """The lowest perplexity at each length."""
    lengths = sorted({row["length"] for row in rows})
    return {length: min(row["ppl"] for row in rows if row["length"] == length) for length in lengths}


def curve_table(rows: Sequence[Row]) -> Table:
    """Scalings down, lengths across, the best of each length in bold with a star."""
    best = best_of_each_length(rows)
    table = Table(title="perplexity over the first n tokens (* best of the length)")
    table.add_column("scaling", no_wrap=True)
    for length in best:
        table.add_column(length_name(length), justify="right")
    for name in dict.fromkeys(label(row) for row in rows):
        at = {row["length"]: row["ppl"] for row in rows if label(row) == name}
        table.add_row(name, *(_cell(at.get(length), best[length]) for length in best))
    return table


def _cell(ppl: float | None, best: float) -> str:
    if ppl is None:
        return ""
    shown = f"{ppl:.2f}" if ppl < 1e4 else f"{ppl:.2e}"
    return f"[bold]{shown}*[/bold]" if shown == f"{best:.2f}" else f"{shown} "


def curve_sentence(rows: Sequence[Row], original_length: int | None) -> str:
    """What to see, from the numbers: how far the unscaled model rises past its training, and what holds best."""
    longest = max(row["length"] for row in rows)
    ends = {label(row): row["ppl"] for row in rows if row["length"] == longest}
    last = {label(row): row["ppl_last"] for row in rows if row["length"] == longest}
    best = min(ends, key=lambda scaling: ends[scaling])
    known = [row for row in rows if label(row) == "none" and row["length"] <= (original_length or 0)]
    if original_length is None or longest <= original_length or "none" not in ends or not known:
        return f"At {longest:,} tokens {best} is best, with a perplexity of {ends[best]:.2f}."
    inside = max(known, key=lambda row: row["length"])
    return (
        f"Past the {original_length:,} tokens it was trained on, the unscaled model's perplexity goes from "
        f"{inside['ppl']:.2f} at {length_name(inside['length'])} to {ends['none']:.2f} at {length_name(longest)} "
        f"({last['none']:.1f} on the last 1,024 tokens); {best} gives {ends[best]:.2f} ({last[best]:.1f})."
    )


def draw_curve(rows: Sequence[Row], path: Path, *, model: str, text: str, original_length: int | None) -> None:
    """Perplexity (log scale) against length, the trained length marked, every line labelled at its end."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    figure = Figure(figsize=(9.5, 5.4), dpi=150)
    FigureCanvasAgg(figure)
    axes = figure.add_axes((0.08, 0.1, 0.67, 0.82))
    lines = []
    scalings = list(dict.fromkeys(row["scaling"] for row in rows))
    for name, (scaling, chunk) in {label(row): (row["scaling"], row["chunk"]) for row in rows}.items():
        points = sorted((row["length"], row["ppl"]) for row in rows if label(row) == name)
        x, y = zip(*points, strict=True)
        colour = "#222222" if scaling == "none" else f"C{scalings.index(scaling) % 10}"
        style = "o-" if chunk is None else "s--"
        axes.plot(x, y, style, color=colour, markersize=4, linewidth=2.2 if scaling == "none" else 1.6)
        lines.append((name, x[-1], y[-1], colour))
    axes.set_yscale("log")
    axes.set_xlabel("tokens read")
    axes.set_ylabel("perplexity over the tokens read (log scale)")
    axes.set_title(f"{model} reading {text}", loc="left")
    ticks = sorted({row["length"] for row in rows})
    axes.set_xticks(ticks, [length_name(tick) for tick in ticks])
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 3, 5, 7)))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.yaxis.set_minor_formatter(NullFormatter())
    axes.grid(alpha=0.25)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    if original_length is not None and ticks[0] <= original_length <= ticks[-1]:
        axes.axvline(original_length, color="#888888", linestyle="--", linewidth=1)
        trained = f" trained on {original_length:,}"
        axes.text(original_length, 0.98, trained, transform=axes.get_xaxis_transform(), color="#666666", va="top")
    _label_ends(figure, axes, lines)
    beside = path.with_name(f".{path.name}")
    figure.savefig(beside, format="png")
    beside.replace(path)


def _label_ends(figure: Any, axes: Any, lines: Sequence[tuple[str, float, float, str]]) -> None:
    """A name at the end of every line, moved apart where they would touch."""
    figure.draw_without_rendering()
    to_points = 72 / figure.dpi
    ends = sorted((axes.transData.transform((x, y))[1] * to_points, name, x, y, colour) for name, x, y, colour in lines)
    places = _apart([place for place, *_ in ends], gap=13.0)
    for place, (end, name, x, y, colour) in zip(places, ends, strict=True):
        axes.annotate(
            f"{name}  {y:.2f}" if y < 1e4 else f"{name}  {y:.1e}",
            (x, y),
            xytext=(18, place - end),
            textcoords="offset points",
            color=colour,
            va="center",
            fontsize=9,
            annotation_clip=False,
            arrowprops={"arrowstyle": "-", "color": colour, "lw": 0.6, "shrinkA": 1, "shrinkB": 3, "relpos": (0, 0.5)},
        )


def _apart(places: Sequence[float], gap: float) -> list[float]:
    """The places (ascending) moved as little as makes them `gap` apart: crowded ones spread around their mean."""
    clusters: list[list[float]] = []  # of the places, each less its rank times the gap: equal once they are apart
    for rank, place in enumerate(places):
        clusters.append([place - rank * gap])
        while len(clusters) > 1 and _mean(clusters[-2]) > _mean(clusters[-1]):
            clusters[-2:] = [clusters[-2] + clusters[-1]]
    levels = [_mean(cluster) for cluster in clusters for _ in cluster]
    return [level + rank * gap for rank, level in enumerate(levels)]


def _mean(numbers: Sequence[float]) -> float:
    return sum(numbers) / len(numbers)
