from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ropewalk.cli.output import JsonOption, console, print_json


def command(
    folder: Annotated[str, typer.Argument(help="Folder that eval wrote.", show_default=False)],
    out: Annotated[str, typer.Option(help="The page; report.html in the folder if not given.")] = "",
    json: JsonOption = False,
) -> None:
    """Write one HTML file of an evaluation, finished or not: tables, heat maps, samples."""
    from ropewalk.evaluate.evaluation_store import EvaluationStore
    from ropewalk.report.evaluation import document
    from ropewalk.report.page import write_report

    with EvaluationStore(folder) as store:
        paths = write_report(store, Path(out or Path(folder) / "report.html").expanduser())
        made = document(store, store.cells())
    if json:
        print_json({**made, "files": [str(path) for path in paths]})
        return
    page, *pictures = paths
    console.print(f"Report: {page}", highlight=False)
    for picture in pictures:
        console.print(f"Picture: {picture}", highlight=False)
