"""`ropewalk demo`: the curve of the built-in model on the built-in text."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ropewalk.cli.curve import run_and_show
from ropewalk.cli.options import JsonOption
from ropewalk.cli.output import console

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
    json: JsonOption = False,
) -> None:
    """Read past the trained length with the built-in model, without scaling and with six scalings."""
    from ropewalk.evaluate.curve import CurveRun

    run_and_show(CurveRun("smollm2", SCALINGS, LENGTHS, "pydoc", out), json)
    page = explain_curve(Path(out).expanduser())
    if not json:
        console.print(f"Why it is so: {page}")


def explain_curve(folder: Path) -> Path:
    """Write a page that explains the scalings of the demo beside its curve, into the folder of the curve."""
    from ropewalk.report.explain.page import write_explanation

    page = folder / "explain.html"
    write_explanation("smollm2", LENGTHS[-1], page, SCALINGS, curve=str(folder))
    return page
