"""`ropewalk explain`: a page that explains a model's rotary embedding to the eye."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ropewalk.cli.options import JsonOption, ModelArgument, TargetOption
from ropewalk.cli.output import console, print_json
from ropewalk.lengths import parse_length

_SCALINGS_HELP = "Scaling to show beside the unscaled model; repeat the option for several. By default the common ones."


def command(
    model: ModelArgument,
    target: TargetOption,
    out: Annotated[str, typer.Option(help="HTML file to write.", show_default=False)],
    scaling: Annotated[list[str], typer.Option(help=_SCALINGS_HELP, show_default=False)] = [],  # noqa: B006
    curve: Annotated[str, typer.Option(help="Folder of `ropewalk curve`, to show its results.")] = "",
    evaluation: Annotated[str, typer.Option("--eval", help="Folder of `ropewalk eval`, to show its results.")] = "",
    language: Annotated[str, typer.Option(help="Language of the page: en or zh.")] = "en",
    pictures: Annotated[str, typer.Option(help="Folder for circles.svg and pairs.svg, to put into documents.")] = "",
    json: JsonOption = False,
) -> None:
    """Write a page that shows a model's rotations and what scalings do to them. Loads no weights."""
    from ropewalk.report.explain.page import write_explanation

    page = Path(out).expanduser()
    subject = write_explanation(
        model,
        parse_length(target, "target"),
        page,
        scaling,
        curve=curve or None,
        evaluation=evaluation or None,
        language=language,
        pictures=Path(pictures).expanduser() if pictures else None,
    )
    if json:
        scalings = [str(scaling) for scaling in subject.scalings]
        lengths = {"original_length": subject.original_length, "target": subject.target}
        print_json({"model": model, **lengths, "scalings": scalings, "page": str(page)})
        return
    console.print(f"Page: {page}")
