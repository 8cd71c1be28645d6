"""`ropewalk export`: the configuration with which a serving engine applies a scaling."""

from __future__ import annotations

import json as jsonlib
from typing import Annotated

import typer

from ropewalk.cli.options import EngineOption, JsonOption, ModelArgument, ScalingOption, parse_optional_length
from ropewalk.cli.output import console, print_bold, print_json


def command(
    model: ModelArgument,
    scaling: ScalingOption,
    engine: EngineOption,
    out: Annotated[str | None, typer.Option(help="Folder to write; without it, the changes are only printed.")] = None,
    length: Annotated[str, typer.Option(help="Tokens to serve, by default the length that the scaling is for.")] = "",
    json: JsonOption = False,
) -> None:
    """Write the configuration with which a serving engine applies a scaling, and print the command to start it."""
    from ropewalk.serving.export import export_model

    result = export_model(model, scaling, engine, out, parse_optional_length(length, "length"))
    if json:
        print_json(result.to_dict())
        return
    how = f"written as {result.encoded_as}" if result.encoded_as else "which the engine supports natively"
    print_bold(result.scaling, f" for {result.engine}, {result.length:,} tokens, {how}")
    print(jsonlib.dumps(result.changes, indent=2))
    if result.path is not None:
        console.print(f"written to {result.path}")
    for note in result.notes:
        console.print(f"  - {note}")
    console.print("start it with:")
    print(result.command)
