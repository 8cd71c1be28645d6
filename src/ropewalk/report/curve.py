"""A perplexity curve as a table, as a picture, and as one sentence."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from rich.table import Table
from rich.text import Text

from ropewalk.evaluate.curve_store import CurveRow
from ropewalk.lengths import format_length
from ropewalk.report.figures import assign_colors
from ropewalk.report.formatting import format_number
from ropewalk.report.line_chart import Line, draw_line_chart
from ropewalk.report.tables import make_table, mark_best


def row_label(row: CurveRow) -> str:
    """Return the scaling of a row, and how the text was read if that was through the KV cache."""
    if row["chunk"] is None:
        return row["scaling"]
    policy = f", {row['policy']}" if row["policy"] else ""
    return f"{row['scaling']} (cached by {row['chunk']}{policy})"


def curve_table(rows: Sequence[CurveRow]) -> Table:
    """Return a table with one row per scaling and one column per length; the best of each length has a star."""
    lengths = sorted({row["length"] for row in rows})
    perplexities = {(row_label(row), row["length"]): row["ppl"] for row in rows}
    best = {length: min(row["ppl"] for row in rows if row["length"] == length) for length in lengths}
    table_rows: list[list[str | Text]] = []
    for label in dict.fromkeys(row_label(row) for row in rows):
        cells: list[str | Text] = [label]
        for length in lengths:
            ppl = perplexities.get((label, length))
            shown = "" if ppl is None else format_number(ppl)
            cells.append(mark_best(shown, shown == format_number(best[length])))
        table_rows.append(cells)
    headings = ["scaling", *map(format_length, lengths)]
    return make_table("Perplexity over the first n tokens (* best of the length)", headings, table_rows)


def curve_sentence(rows: Sequence[CurveRow], original_length: int | None) -> str:
    """Return what the numbers show: how far the unscaled model degrades past its original length, and what is best."""
    longest = max(row["length"] for row in rows)
    at_longest = {row_label(row): row for row in rows if row["length"] == longest}
    best = min(at_longest.values(), key=lambda row: row["ppl"])
    unscaled = at_longest.get("none")
    within = [row for row in rows if row_label(row) == "none" and row["length"] <= (original_length or 0)]
    if original_length is None or longest <= original_length or unscaled is None or not within:
        return f"At {longest:,} tokens {row_label(best)} is best, with a perplexity of {best['ppl']:.2f}."
    trained = max(within, key=lambda row: row["length"])
    return (
        f"Past the {original_length:,} tokens it was trained on, the unscaled model's perplexity goes from "
        f"{trained['ppl']:.2f} at {format_length(trained['length'])} to {unscaled['ppl']:.2f} at "
        f"{format_length(longest)} ({unscaled['ppl_last']:.1f} on the last 1,024 tokens); "
        f"{row_label(best)} has {best['ppl']:.2f} ({best['ppl_last']:.1f})."
    )


def draw_curve(rows: Sequence[CurveRow], path: Path, *, model: str, text: str, original_length: int | None) -> None:
    """Draw perplexity (log scale) against length as a PNG.

    A text read through the KV cache is a dashed line in the color of its scaling.
    """
    colors = assign_colors(list(dict.fromkeys(row["scaling"] for row in rows)))
    rows_by_label: dict[str, list[CurveRow]] = {}
    for row in rows:
        rows_by_label.setdefault(row_label(row), []).append(row)
    lines = []
    for label, label_rows in rows_by_label.items():
        points = sorted((row["length"], row["ppl"]) for row in label_rows)
        style = "o-" if label_rows[0]["chunk"] is None else "s--"
        lines.append(Line(label, points, colors[label_rows[0]["scaling"]], style))
    title, score = f"{model} reading {text}", "perplexity over the tokens read"
    draw_line_chart(lines, path, title=title, score=score, is_share=False, original_length=original_length)
