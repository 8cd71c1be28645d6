"""A measured plan as a table for the terminal."""

from __future__ import annotations

from collections.abc import Sequence

from rich.table import Table

from ropewalk.evaluate.measured_plan import MeasuredMethod
from ropewalk.report.tables import make_table


def measured_table(measured: Sequence[MeasuredMethod]) -> Table:
    """Return a table of what was measured of each method, the chosen one first."""
    headings = ["method", "perplexity at the target", "passkeys, by depth", "short text, %", "standard error, %"]
    rows = []
    for each in measured:
        passkeys = "".join("+" if found else "-" for found in each.passkeys)
        tax, error = "", ""
        if each.short_tax:
            tax = f"{each.short_tax['percent']:+.2f}"
            error = "" if each.short_tax["standard_error"] is None else f"{each.short_tax['standard_error']:.2f}"
        shown = passkeys if each.remained else "dropped after window 1"
        rows.append([str(each.method), f"{each.perplexity:.3f}", shown, tax, error])
    return make_table("Measured, the chosen method first", headings, rows, text_columns=(0, 2))
