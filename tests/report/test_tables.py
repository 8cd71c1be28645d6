from __future__ import annotations

import io

from rich.console import Console

from ropewalk.report.tables import make_table, mark_best


def render(table, width=100):
    console = Console(width=width, record=True, file=io.StringIO())
    console.print(table)
    return console.export_text()


def test_text_is_left_aligned_and_numbers_are_right_aligned():
    lines = render(make_table("", ["name", "value"], [["a", "1"], ["bcd", mark_best("100.0", True)]])).splitlines()
    rows = [line for line in lines if "1" in line]
    assert [row.index(name) for row, name in zip(rows, ("a", "bcd"), strict=True)] == [1, 1]
    assert rows[0].rstrip().index("1") == rows[1].rstrip().index("*")


def test_titles_headings_and_cells_are_not_read_as_markup():
    text = render(make_table("[bold]", ["[red]"], [["[/dim]"]]))
    assert all(part in text for part in ("[bold]", "[red]", "[/dim]"))


def test_numbers_are_never_cut_in_a_narrow_terminal():
    assert "12345.678" in render(make_table("", ["a long name", "n"], [["x" * 80, "12345.678"]]), width=30)
