from __future__ import annotations

from typing import Annotated

import typer

from ropewalk.cli import curve
from ropewalk.cli.output import Json
from ropewalk.scaling import parse

SCALINGS = (
    "none",
    "linear:factor=2",
    "ntk:factor=2",
    "dynamic-ntk",
    "ntk-by-parts:factor=2",
    "yarn:factor=2",
    "dynamic-yarn",
)
LENGTHS = (2048, 4096, 8192, 12288, 16384)


def command(
    out: Annotated[str, typer.Option(help="Folder for the results.")] = "ropewalk-demo",
    json: Json = False,
) -> None:
    """Show the main job: a real model reads past its trained length, with and without scaling."""
    curve.run("smollm2", [parse(spec) for spec in SCALINGS], list(LENGTHS), "pydoc", out, None, json)
