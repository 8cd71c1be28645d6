from __future__ import annotations

import json as jsonlib
from typing import Annotated

import typer

from ropewalk.cli.output import Json, Model, print_json, results
from ropewalk.lengths import parse_length


def command(
    model: Model,
    scaling: Annotated[str, typer.Option(help="name:option=value,... or JSON.", show_default=False)],
    engine: Annotated[str, typer.Option(help="Who shall serve; `ropewalk engines` lists them.", show_default=False)],
    out: Annotated[str, typer.Option(help="Folder to write; if not given, nothing is written.")] = "",
    length: Annotated[str, typer.Option(help="Tokens to serve; by default what the scaling reaches.")] = "",
    json: Json = False,
) -> None:
    """Write the configuration with which a serving engine reads a model under a scaling."""
    from ropewalk.serving.export import export_model

    made = export_model(model, scaling, engine, out or None, parse_length(length, "length") if length else None)
    if json:
        print_json(made.to_dict())
        return
    how = f"written through {made.through}" if made.through else "in its own words"
    results.print(f"[bold]{made.scaling}[/bold] for {made.engine}, {made.length:,} tokens, {how}", highlight=False)
    print(jsonlib.dumps(made.changes, indent=2))
    if made.path is not None:
        results.print(f"written to {made.path}", highlight=False)
    for note in made.notes:
        results.print(f"  - {note}", highlight=False)
    results.print("start it with:", highlight=False)
    print(made.command)
