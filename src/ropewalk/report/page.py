"""The report of an evaluation: one HTML file that needs no network and runs no script.

The page holds its pictures; they are also written beside it as PNG files.
"""

from __future__ import annotations

import base64
import re
from collections.abc import Mapping, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

from ropewalk.errors import InputError
from ropewalk.evaluate.evaluation_store import CellResult, EvaluationStore
from ropewalk.files import ensure_writable_folder, write_text_atomically
from ropewalk.lengths import format_length
from ropewalk.report.descriptions import describe_scaling, load_rope
from ropewalk.report.figures import DPI
from ropewalk.report.formatting import shorten_middle
from ropewalk.report.grouping import group_by_column, group_by_kind, is_suite, list_columns
from ropewalk.report.pictures import PictureWriter
from ropewalk.report.samples import choose_samples, list_scores
from ropewalk.report.score_rows import ScoreRow, all_rows, group_rows, length_bin_rows, task_rows
from ropewalk.report.short_and_effective import EffectiveLength, ShortCost, list_effective_lengths, list_short_costs
from ropewalk.report.templates import escape_invisible, load_template
from ropewalk.rope import Rope

_CSS_PIXELS_PER_INCH = 96


def write_report(store: EvaluationStore, out: Path) -> list[Path]:
    """Write the page to `out` and its pictures beside it, and return their paths, the page first.

    Raises InputError for a folder without results, or an `out` that is not an HTML file or cannot be written;
    MissingPackageError without jinja2 or matplotlib.
    """
    cells = store.cells()
    if not cells:
        raise InputError("folder", str(store.folder), "the folder of an evaluation that has started")
    if out.suffix.lower() not in (".html", ".htm"):
        raise InputError("out", str(out), "a file whose name ends in .html")
    filters = {"group_by_task": _group_by_task, "allow_breaks": _allow_breaks, "format_length": format_length}
    template = load_template(__package__, "page.html.j2", "ropewalk report", shorten=shorten_middle, **filters)
    folder = ensure_writable_folder(out.parent)
    model = str(store.model.get("model", ""))
    rope = load_rope(model)
    original_length = rope.original_length if rope else None
    pictures = list(PictureWriter(folder, model, original_length).draw(cells))
    kinds = group_by_kind(cells)
    page = template.render(
        model=store.model,
        original_length=original_length,
        status=_describe_progress(cells),
        runs=_merge_runs(store.runs()),
        prompts=_describe_prompts(cells),
        columns=list_columns(cells),
        kinds=list(kinds),
        summary=_summary_rows(cells),
        effective_lengths=_effective_rows(list_effective_lengths(cells)),
        short_costs=_cost_rows(list_short_costs(cells, original_length)),
        pictures=[(*_embed_png(path.read_bytes()), alt) for path, alt in pictures],
        details=[table for kind, kind_tasks in kinds.items() for table in _detail_tables(kind, kind_tasks)],
        descriptions=_describe_columns(cells, rope),
        samples=[
            (task, choose_samples(task_cells), sum(len(cell.sample_results) for cell in task_cells))
            for kind_tasks in kinds.values()
            for task, task_cells in kind_tasks.items()
        ],
    )
    write_text_atomically(out, page)
    return [out, *(path for path, _ in pictures)]


def _group_by_task(rows: Sequence[ScoreRow]) -> list[list[ScoreRow]]:
    """Return adjacent rows of the same task and score together; the table shows their name once."""
    return [list(group) for _, group in groupby(rows, key=lambda row: (row.task, row.score))]


def _allow_breaks(spec: str) -> Any:
    """Return a scaling's name, escaped, in which a line may break after each of its parts."""
    from markupsafe import Markup, escape

    parts = re.findall(r"[^:,=]+[:,=]*|[:,=]+", escape_invisible(spec))
    return Markup("<wbr>").join(escape(part) for part in parts)


def _embed_png(png: bytes) -> tuple[str, int]:
    """Return a data URI with the picture, and its width in CSS pixels."""
    width = int.from_bytes(png[16:20]) * _CSS_PIXELS_PER_INCH // DPI  # bytes 16 to 19 of a PNG: its width
    return f"data:image/png;base64,{base64.b64encode(png).decode()}", width


def _describe_progress(cells: Sequence[CellResult]) -> str:
    finished = sum(cell.summary is not None for cell in cells)
    if finished == len(cells):
        return f"All {finished:,} cells are done."
    samples = sum(len(cell.sample_results) for cell in cells)
    return (
        f"Unfinished: {finished:,} of {len(cells):,} cells and {samples:,} samples are done. In tables, 3/10 means "
        "that three of ten samples are done. Heat maps include unfinished cells; line charts do not."
    )


def _describe_prompts(cells: Sequence[CellResult]) -> list[str]:
    """Return the kinds of prompts, each with the tasks that had them."""
    tasks: dict[bool, dict[str, None]] = {}
    for cell in cells:
        tasks.setdefault(cell.description["chat"], {})[cell.description["task"]] = None
    kinds = {True: "in the chat template of the model", False: "as plain text"}
    return [f"{kinds[chat]}: {', '.join(names)}" for chat, names in tasks.items()]


def _merge_runs(runs: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return the runs, those with the same command and versions as one entry with all of their `times`."""
    merged: dict[tuple[str, str], dict[str, Any]] = {}
    for run in runs:
        versions = ", ".join(f"{name} {version}" for name, version in run["versions"].items())
        entry = merged.setdefault((run["command"], versions), {**run, "versions": versions, "times": []})
        entry["times"].append(run["started"])
    return list(merged.values())


def _summary_rows(cells: Sequence[CellResult]) -> list[ScoreRow]:
    """Return the rows of all tasks, with the mean of each suite in place of its tasks, which the details have."""
    rows = all_rows(cells)
    averaged = {task for row in rows for task in row.averaged_tasks}
    return [row for row in rows if row.task not in averaged]


def _effective_rows(found: Sequence[EffectiveLength]) -> list[tuple[str, dict[str, str]]]:
    """Return the name of each task with the effective lengths by scaling as text."""
    rows: dict[str, dict[str, str]] = {}
    for each in found:
        shown = "none" if each.length is None else format_length(each.length)
        name = f"{each.task}, from {format_length(each.base_length)}"
        rows.setdefault(name, {})[each.column] = f"≥ {shown}" if each.is_longest else shown
    return list(rows.items())


def _cost_rows(costs: Sequence[ShortCost]) -> list[tuple[str, dict[str, str]]]:
    """Return the name of each task with the costs by scaling as text."""
    rows: dict[str, dict[str, str]] = {}
    for cost in costs:
        count = cost.difference.count
        name = f"{cost.task} at {format_length(cost.length)}, {count} {'prompt' if count == 1 else 'prompts'}"
        rows.setdefault(name, {})[cost.column] = str(cost)
    return list(rows.items())


def _detail_tables(kind: str, tasks: Mapping[str, Sequence[CellResult]]) -> list[tuple[str, list[ScoreRow]]]:
    """Return heading and rows of what the summary omits: other scores, tasks and groups of a suite, bins of length."""
    tables = [(f"{task}: other scores", _other_scores(task, cells)) for task, cells in tasks.items()]
    if is_suite(kind) and len(tasks) > 1:
        rows = [row for task, cells in tasks.items() for row in task_rows(task, cells)]
        tables.append((f"{kind} by task", rows))
        tables.append((f"{kind} by group", group_rows(tasks)))
    tables.append((f"{kind} by bin of length", length_bin_rows(tasks)))
    return [(heading, rows) for heading, rows in tables if rows]


def _other_scores(task: str, cells: Sequence[CellResult]) -> list[ScoreRow]:
    """Return the rows of all scores of a task but its main one."""
    main = cells[0].description["main"]
    return [row for name in list_scores(cells) if name != main for row in task_rows(task, cells, name)]


def _describe_columns(cells: Sequence[CellResult], rope: Rope | None) -> list[tuple[str, str]]:
    """Return each scaling with a description of what it does to the model."""
    descriptions = []
    for column, column_cells in group_by_column(cells).items():
        first = column_cells[0].description
        lengths = [int(cell.description["length"]) for cell in column_cells]
        descriptions.append((column, describe_scaling(first["scaling"], first["policy"], rope, lengths)))
    return descriptions
