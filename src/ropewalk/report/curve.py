"""A perplexity curve as a table, a figure and a sentence."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from rich.table import Table

from ropewalk.evaluate.perplexity import Row
from ropewalk.lengths import length_name
from ropewalk.report.figures import colours
from ropewalk.report.lines import Line, draw_lines


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
    """Perplexity (log scale) against length; what went through the cache is dashed, in the colour of its scaling."""
    colour = colours(list(dict.fromkeys(row["scaling"] for row in rows)))
    lines = []
    for name, (scaling, chunk) in {label(row): (row["scaling"], row["chunk"]) for row in rows}.items():
        points = sorted((row["length"], row["ppl"]) for row in rows if label(row) == name)
        lines.append(Line(name, points, colour[scaling], "o-" if chunk is None else "s--"))
    score = "perplexity over the tokens read"
    title = f"{model} reading {text}"
    draw_lines(lines, path, title=title, score=score, share=False, original_length=original_length)
