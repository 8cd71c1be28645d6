"""An evaluation as a table for the terminal and as a JSON document."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby
from typing import Any

from rich.table import Table
from rich.text import Text

from ropewalk.evaluate.evaluation_store import CellResult, EvaluationStore
from ropewalk.lengths import format_length
from ropewalk.report.grouping import list_columns
from ropewalk.report.score_rows import all_rows
from ropewalk.report.short_and_effective import list_effective_lengths
from ropewalk.report.tables import make_table, mark_best


def summary_table(cells: Sequence[CellResult]) -> Table:
    """Return a table with one row per task and length and one column per scaling; the best of each row has a star."""
    columns = list_columns(cells)
    table_rows: list[list[str | Text]] = []
    for (task, heading), rows in groupby(all_rows(cells), key=lambda row: (row.task, row.heading)):
        table_rows.append([])  # a section per task, whose first row has its name
        name = f"{task} ({heading})"
        for row in rows:
            values = [mark_best(row.format(column), row.is_best(column)) for column in columns]
            table_rows.append([name, format_length(row.length), *values])
            name = ""
    return make_table(
        "* best of the row; 3/10: three of ten samples are finished", ["task", "length", *columns], table_rows
    )


def results_document(store: EvaluationStore, cells: Sequence[CellResult]) -> dict[str, Any]:
    """Return an evaluation, finished or not, ready for JSON.

    In each cell, `done` counts the finished samples out of `samples`, and `summary` is null until all are finished.
    `effective_lengths` has tasks with several lengths.
    """
    shown = ("task", "length", "scaling", "policy", "seed", "samples", "chat")
    documents = []
    for cell in cells:
        document = {name: cell.description[name] for name in shown}
        if cell.summary is not None:
            document["samples"] = len(cell.sample_results)  # a data set may have fewer than requested
        documents.append({**document, "summary": cell.summary, "done": len(cell.sample_results)})
    effective = [each.to_dict() for each in list_effective_lengths(cells)]
    return {"model": store.model, "runs": store.runs(), "cells": documents, "effective_lengths": effective}
