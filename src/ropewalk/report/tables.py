"""Tables for the terminal, all in one look."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from typing import Any

from rich.box import HORIZONTALS
from rich.table import Table
from rich.text import Text

_MIN_TEXT_WIDTH = 12  # characters of a text column before it folds
_MIN_HEADING_WIDTH = 6  # characters of a heading before it folds


def make_table(
    title: str,
    headings: Sequence[str],
    rows: Iterable[Sequence[str | Text]],
    *,
    text_columns: Collection[int] = (0,),
    **options: Any,
) -> Table:
    """Return a rich table of rows.

    Args:
        title: the line above the table; empty for none.
        headings: one per column.
        rows: the cells of each row, plain text (never markup) or styled rich Text. An empty row starts a new section,
            which is set off by a horizontal line.
        text_columns: indices of the columns that hold text; they are left-aligned and folded in a narrow terminal.
            All other columns hold numbers: right-aligned, never cut or folded.
        options: passed on to `rich.table.Table`.
    """
    rows = list(rows)
    table = Table(title=Text(title, "table.title"), **{"box": HORIZONTALS, "padding": (0, 1, 0, 0), **options})
    for index, heading in enumerate(headings):
        widest = max([min(len(heading), _MIN_HEADING_WIDTH), *(len(row[index]) for row in rows if row)])
        is_text = index in text_columns
        table.add_column(
            Text(heading),
            justify="left" if is_text else "right",
            overflow="fold",
            min_width=min(widest, _MIN_TEXT_WIDTH) if is_text else widest,
        )
    for row in rows:
        if row:
            table.add_row(*(Text(cell) if isinstance(cell, str) else cell for cell in row))
        else:
            table.add_section()
    return table


def mark_best(value: str, is_best: bool) -> Text:
    """Return a cell: bold with a star if it is the best value, else padded to the same width."""
    return Text(f"{value}*", "bold") if is_best else Text(f"{value} ")
