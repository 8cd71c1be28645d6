"""`ropewalk report`: the HTML page and pictures of an evaluation."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ropewalk.cli.options import JsonOption
from ropewalk.cli.output import console, print_json


def command(
    folder: Annotated[str, typer.Argument(help="Folder that `ropewalk eval` wrote to.", show_default=False)],
    out: Annotated[str, typer.Option(help="HTML file to write, by default FOLDER/report.html.")] = "",
    json: JsonOption = False,
) -> None:
    """Write an HTML page of an evaluation, finished or not, with tables, pictures and samples."""
    from ropewalk.evaluate.evaluation_store import EvaluationStore
    from ropewalk.report.evaluation import results_document
    from ropewalk.report.page import write_report

    with EvaluationStore(folder) as store:
        paths = write_report(store, Path(out or Path(folder) / "report.html").expanduser())
        document = results_document(store, store.cells())
    if json:
        print_json({**document, "files": [str(path) for path in paths]})
        return
    page, *pictures = paths
    console.print(f"Report: {page}")
    for picture in pictures:
        console.print(f"Picture: {picture}")
