from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ropewalk.cli.output import Json, print_json, results


def command(
    folder: Annotated[str, typer.Argument(help="Folder that eval wrote.", show_default=False)],
    out: Annotated[str, typer.Option(help="The page; report.html in the folder if not given.")] = "",
    json: Json = False,
) -> None:
    """Write one HTML file of an evaluation, finished or not: tables, heat maps, samples."""
    from ropewalk.evaluate.store import Store
    from ropewalk.report.evaluation import document
    from ropewalk.report.page import write_report

    with Store(folder) as store:
        paths = write_report(store, Path(out or Path(folder) / "report.html").expanduser())
        made = document(store, store.cells())
    if json:
        print_json({**made, "files": [str(path) for path in paths]})
        return
    page, *pictures = paths
    results.print(f"Report: {page}", highlight=False)
    for picture in pictures:
        results.print(f"Picture: {picture}", highlight=False)
