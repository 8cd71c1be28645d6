"""`ropewalk engines`: which serving engine supports which scaling method."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ropewalk.cli.options import JsonOption
from ropewalk.cli.output import console, print_json


def command(
    verified: Annotated[str, typer.Option(help="Folder with results of `ropewalk verify --json` to include.")] = "",
    json: JsonOption = False,
) -> None:
    """List the serving engines and the scaling methods that each of them supports."""
    from ropewalk.report.tables import make_table
    from ropewalk.serving.engines import ENGINES
    from ropewalk.serving.support import list_support, read_verify_results

    support = list_support(read_verify_results(Path(verified).expanduser()) if verified else ())
    if json:
        print_json({"engines": [vars(entry) for entry in support]})
        return
    rows = []
    for engine in ENGINES.values():
        native, unsupported = [], []
        equivalents: dict[str, list[str]] = {}
        for entry in support:
            if entry.engine != engine.name:
                continue
            if entry.how == "own":
                native.append(entry.method)
            elif entry.how == "no":
                unsupported.append(entry.method)
            else:
                equivalents.setdefault(entry.detail, []).append(entry.method)
        lines = [f"{detail}: {', '.join(methods)}" for detail, methods in equivalents.items()]
        rows.append([f"{engine.name} {engine.version}", ", ".join(native), "\n".join(lines), ", ".join(unsupported)])
    headings = ["engine", "native", "through an equivalent", "not supported"]
    table = make_table("Methods that each engine supports", headings, rows, text_columns=range(4), show_lines=True)
    console.print(table)
