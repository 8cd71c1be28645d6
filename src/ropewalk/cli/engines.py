from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from ropewalk.cli.output import Json, print_json, results


def command(
    verified: Annotated[str, typer.Option(help="Folder with results of verify, to mark what they prove.")] = "",
    markdown: Annotated[bool, typer.Option("--markdown", help="Print the page of the docs.")] = False,
    json: Json = False,
) -> None:
    """List the serving engines, and which methods each can be given."""
    from ropewalk.report.matrix import matrix, matrix_page, read_verified
    from ropewalk.serving.engines import ENGINES

    rows = read_verified(Path(verified)) if verified else []
    if markdown:
        print(matrix_page(rows), end="")
        return
    cells = matrix(rows)
    if json:
        print_json({"engines": [vars(cell) for cell in cells]})
        return
    table = Table(title="what each engine can be given")
    for column in ("engine", "in its own words", "through others", "not at all"):
        table.add_column(column)
    for engine in ENGINES.values():
        own = [cell for cell in cells if cell.engine == engine.name]
        table.add_row(
            f"{engine.name} {engine.version}",
            ", ".join(cell.method for cell in own if cell.how == "own"),
            "\n".join(
                f"{through}: "
                + ", ".join(cell.method for cell in own if (cell.how, cell.detail) == ("through", through))
                for through in dict.fromkeys(cell.detail for cell in own if cell.how == "through")
            ),
            ", ".join(cell.method for cell in own if cell.how == "no"),
        )
    results.print(table)
