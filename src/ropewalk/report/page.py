"""The report of an evaluation: one HTML file that needs no network and runs no script."""

from __future__ import annotations

import base64
import re
from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass
from importlib import resources
from itertools import groupby
from pathlib import Path
from typing import Any

from ropewalk.errors import InputError
from ropewalk.evaluate.evaluation_store import CellResult, EvaluationStore
from ropewalk.evaluate.sample import SampleResult
from ropewalk.files import writable_folder, write_whole
from ropewalk.lengths import length_name
from ropewalk.report.descriptions import in_words, rope_of
from ropewalk.report.evaluation import Row, by_kind, columns, is_share, is_suite, rows, score_of, task_rows, value_text
from ropewalk.report.figures import DPI
from ropewalk.report.labels import shortened
from ropewalk.report.pictures import Gallery
from ropewalk.report.suites import bin_rows, group_rows

_SAMPLES = 20  # of a task, that are shown
_CHARACTERS = 400  # of an answer, that are shown
# what is not seen but changes what is seen: control characters and the marks that reverse the order of writing
_UNSEEN = {*range(0x20), 0x7F, *range(0x80, 0xA0), *range(0x202A, 0x202F), *range(0x2066, 0x206A)} - {*b"\t\n"}
_SEEN = {code: chr(code).encode("unicode_escape").decode() for code in _UNSEEN}


@dataclass(frozen=True)
class Shown:
    """A sample as the page has it; its texts are as the model gave them, the template escapes them."""

    scaling: str
    length: str
    number: int
    about: list[str]
    references: str
    answer: str
    scores: list[str]


@dataclass(frozen=True)
class TableOf:
    """Rows under a heading."""

    heading: str
    rows: Sequence[Row]


def write_report(store: EvaluationStore, out: Path) -> list[Path]:
    """Write the page to `out` and its pictures beside it; returns their paths, the page's first.

    Raises InputError for a folder without results, or an `out` that is no HTML file or cannot be written.
    """
    cells = store.cells()
    if not cells:
        raise InputError("folder", str(store.folder), "the folder of an evaluation that was begun")
    if out.suffix.lower() not in (".html", ".htm"):
        raise InputError("out", str(out), "a file whose name ends in .html")
    folder = writable_folder(out.parent)
    model = str(store.model.get("model", ""))
    rope = rope_of(model)
    pictures = list(Gallery(folder, model, rope.original_length if rope else None).draw(cells))
    kinds = by_kind(cells)
    page = _template().render(
        model=store.model,
        original_length=rope.original_length if rope else None,
        status=_status(cells),
        runs=_runs(store.runs()),
        columns=columns(cells),
        kinds=list(kinds),
        summary=_summary(cells),
        pictures=[(*_embedded(picture.path.read_bytes()), picture.alt) for picture in pictures],
        details=[table for kind, tasks in kinds.items() for table in _details(kind, tasks)],
        words=[(column, _words(own, rope)) for column, own in _by_column(cells).items()],
        samples=[(task, *_samples(own)) for tasks in kinds.values() for task, own in tasks.items()],
    )
    write_whole(out, page)
    return [out, *(picture.path for picture in pictures)]


def _template() -> Any:
    import jinja2

    # whatever the name of the file, everything is escaped: answers of a model are anybody's text
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True)
    environment.lstrip_blocks = True
    environment.finalize = _seen
    environment.filters.update(blocks=_blocks, breaking=_breaking, tokens=length_name, short=shortened)
    return environment.from_string(resources.files(__package__).joinpath("page.html.j2").read_text("utf-8"))


def _seen(value: Any) -> Any:
    return value.translate(_SEEN) if type(value) is str else value


def _blocks(found: Sequence[Row]) -> list[list[Row]]:
    """The rows of one task and score together, which name them once."""
    return [list(block) for _, block in groupby(found, key=lambda row: (row.task, row.score))]


def _breaking(spec: str) -> Any:
    """A spec, escaped, that may go on in another line where one of its parts ends."""
    from markupsafe import Markup, escape

    return Markup("<wbr>").join(escape(part) for part in re.findall(r"[^:,=]+[:,=]*|[:,=]+", _seen(spec)))


def _embedded(png: bytes) -> tuple[str, int]:
    """A picture as a URI that holds it, and its width in the pixels of a page."""
    width = int.from_bytes(png[16:20]) * 96 // DPI
    return f"data:image/png;base64,{base64.b64encode(png).decode()}", width


def _status(cells: Sequence[CellResult]) -> str:
    done = sum(cell.summary is not None for cell in cells)
    if done == len(cells):
        return f"All {done:,} cells are done."
    share = f"{done:,} of {len(cells):,} cells are done"
    inside = f"{sum(len(cell.sample_results) for cell in cells):,} samples are in"
    return (
        f"Unfinished: {share}, {inside}. Tables give 3/10 where three of ten samples are in; "
        "pictures show what is in, lines only what is done."
    )


def _runs(runs: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The runs, those of one command and the same versions together."""
    found: dict[str, dict[str, Any]] = {}
    for run in runs:
        versions = ", ".join(f"{name} {version}" for name, version in run["versions"].items())
        same = found.setdefault(repr((run["command"], versions)), {**run, "versions": versions, "times": []})
        same["times"].append(run["started"])
    return list(found.values())


def _summary(cells: Sequence[CellResult]) -> list[Row]:
    """The rows of every task but the members of suites, which stand below; their mean stands for them."""
    all_rows = rows(cells)
    members = {task for row in all_rows for task in row.members}
    return [row for row in all_rows if row.task not in members]


def _details(kind: str, tasks: Mapping[str, Sequence[CellResult]]) -> list[TableOf]:
    """What the summary leaves out: the other scores of a task; the members of a suite, their groups and bins."""
    found = [(f"{task}: other scores", _others(task, cells)) for task, cells in tasks.items()]
    if is_suite(kind) and len(tasks) > 1:
        found.append((f"{kind} by task", [row for task, cells in tasks.items() for row in task_rows(task, cells)]))
        found.append((f"{kind} by group", group_rows(tasks)))
    found.append((f"{kind} by bin of length", bin_rows(tasks)))
    return [TableOf(heading, shown) for heading, shown in found if shown]


def _others(task: str, cells: Sequence[CellResult]) -> list[Row]:
    return [
        row for name in _scores(cells) if name != cells[0].description["main"] for row in task_rows(task, cells, name)
    ]


def _scores(cells: Sequence[CellResult]) -> list[str]:
    return list(dict.fromkeys(name for cell in cells for outcome in cell.sample_results for name in outcome["scores"]))


def _by_column(cells: Sequence[CellResult]) -> dict[str, list[CellResult]]:
    return {column: [cell for cell in cells if cell.description["column"] == column] for column in columns(cells)}


def _words(cells: Sequence[CellResult], rope: Any) -> str:
    about = cells[0].description
    lengths = sorted({int(cell.description["length"]) for cell in cells})
    return in_words(about["scaling"], about["policy"], rope, lengths)


def _samples(cells: Sequence[CellResult]) -> tuple[list[Shown], int]:
    """The samples of a task to show, the worst first, as many of each cell as of the others; and how many there are."""
    better, main = cells[0].description["better"], cells[0].description["main"]

    def goodness(outcome: SampleResult) -> float:
        return (score_of(outcome, main) or 0.0) * (1 if better == "higher" else -1)

    ranked = [
        (rank, goodness(outcome), cell, outcome)
        for cell in cells
        for rank, outcome in enumerate(sorted(cell.sample_results, key=goodness))
    ]
    chosen = sorted(ranked, key=lambda each: each[:2])[:_SAMPLES]
    chosen.sort(key=lambda each: each[1])
    shares = {name for name in _scores(cells) if is_share(cells, name)}
    return [_shown(cell, outcome, shares) for _, _, cell, outcome in chosen], len(ranked)


def _shown(cell: CellResult, outcome: SampleResult, shares: Set[str]) -> Shown:
    about = cell.description
    told = [f"{name} {100 * v:.0f} %" if name == "depth" else f"{name} {v}" for name, v in outcome["about"].items()]
    scores = [
        f"{name} {value_text(value, name in shares)}{' %' if name in shares else ''}"
        for name in outcome["scores"]
        if (value := score_of(outcome, name)) is not None
    ]
    return Shown(
        scaling=shortened(about["column"], 60),
        length=length_name(about["length"]),
        number=outcome["index"],
        about=told,
        references=_text(" | ".join(outcome["references"])),
        answer=_text(outcome["answer"]),
        scores=scores,
    )


def _text(text: str) -> str:
    """Any text, short enough to read, and how long it was."""
    return text if len(text) <= _CHARACTERS else f"{text[:_CHARACTERS]} … ({len(text):,} characters)"
