"""A perplexity curve as tables, as pictures, and in sentences."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.table import Table
from rich.text import Text

from ropewalk.evaluate.curve_store import CurveRow
from ropewalk.evaluate.short_tax import ShortTax
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
    values = {(row_label(row), row["length"]): row["ppl"] for row in rows}
    return _length_table("Perplexity over the first n tokens (* best of the length)", values)


def longppl_table(rows: Sequence[CurveRow]) -> Table:
    """Return the table of LongPPL with the number of key tokens at each length, for rows that all have it."""
    values = {(row_label(row), row["length"]): row["longppl"] for row in rows}
    counts = {row["length"]: f"{row['key_tokens']:,} key tokens" for row in rows}
    return _length_table(
        "LongPPL: perplexity over the key tokens of the first n (* best of the length)", values, counts
    )


def _length_table(title: str, values: Mapping[tuple[str, int], Any], notes: Mapping[int, str] | None = None) -> Table:
    """Return a table of values by label and length, where lower is better, with a note below each length."""
    lengths = sorted({length for _, length in values})
    best = {length: min(value for (_, other), value in values.items() if other == length) for length in lengths}
    table_rows: list[list[str | Text]] = []
    for label in dict.fromkeys(label for label, _ in values):
        cells: list[str | Text] = [label]
        for length in lengths:
            value = values.get((label, length))
            shown = "" if value is None else format_number(value)
            cells.append(mark_best(shown, shown == format_number(best[length])))
        table_rows.append(cells)
    if notes:
        table_rows += [[], ["", *(f"{notes[length]} " for length in lengths)]]
    return make_table(title, ["scaling", *map(format_length, lengths)], table_rows)


def short_tax_table(taxes: Sequence[ShortTax]) -> Table:
    """Return a table of what each scaling costs on text that fits without it."""
    first = taxes[0]
    headings = ["scaling", "perplexity", "unscaled", "cost, %", "standard error, %"]
    table_rows = []
    for tax in taxes:
        error = "" if tax["standard_error"] is None else f"{tax['standard_error']:.2f}"
        numbers = [format_number(tax["ppl"]), format_number(tax["ppl_unscaled"]), f"{tax['percent']:+.2f}", error]
        table_rows.append([tax["scaling"], *numbers])
    title = f"Cost on short text: the first {first['tokens']:,} tokens, which fit without scaling"
    return make_table(f"{title} (errors over {first['windows']} windows)", headings, table_rows)


def evaluator_sentence(rows: Sequence[CurveRow]) -> str:
    """Return who found the key tokens of rows with LongPPL, and what that means for their comparison."""
    longest = max(rows, key=lambda row: row["length"])
    sentence = f"{longest['key_tokens']:,} of {longest['length']:,} tokens are key tokens, found by the model "
    evaluator = longest["evaluator"] or ""
    if not evaluator.startswith("itself"):
        return f"{sentence}{evaluator}."
    return f"{sentence}{evaluator}; that favors scalings like this one: another --evaluator judges independently."


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
        f"{trained['ppl']:.2f} at {format_length(trained['length'])} to {format_number(unscaled['ppl'])} at "
        f"{format_length(longest)} ({format_number(unscaled['ppl_last'])} on the last 1,024 tokens); "
        f"{row_label(best)} has {format_number(best['ppl'])} ({format_number(best['ppl_last'])})."
    )


def draw_curve(rows: Sequence[CurveRow], path: Path, *, model: str, text: str, original_length: int | None) -> None:
    """Draw perplexity (log scale) against length as a PNG.

    A text read through the KV cache is a dashed line in the color of its scaling.
    """
    values = {(row_label(row), row["length"]): row["ppl"] for row in rows}
    title, score = f"{model} reading {text}", "perplexity over the tokens read"
    _draw_values(rows, values, path, title, score, original_length)


def draw_longppl(rows: Sequence[CurveRow], path: Path, *, model: str, text: str, original_length: int | None) -> None:
    """Draw LongPPL (log scale) against length as a PNG, for rows that all have it."""
    values = {(row_label(row), row["length"]): row["longppl"] for row in rows}
    title = f"{model} reading {text}; key tokens found by {rows[-1]['evaluator']}"
    _draw_values(rows, values, path, title, "perplexity over key tokens", original_length)


def _draw_values(
    rows: Sequence[CurveRow],
    values: Mapping[tuple[str, int], Any],
    path: Path,
    title: str,
    score: str,
    original_length: int | None,
) -> None:
    """Draw values by label and length, one line per label in the color of its scaling."""
    colors = assign_colors(list(dict.fromkeys(row["scaling"] for row in rows)))
    lines = []
    for label, row in {row_label(row): row for row in rows}.items():
        points = sorted((length, value) for (other, length), value in values.items() if other == label)
        lines.append(Line(label, points, colors[row["scaling"]], "o-" if row["chunk"] is None else "s--"))
    draw_line_chart(lines, path, title=title, score=score, is_share=False, original_length=original_length)
