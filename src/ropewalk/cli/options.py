"""Arguments and options that several commands share."""

from __future__ import annotations

from typing import Annotated

import typer

from ropewalk.lengths import parse_length

ModelArgument = Annotated[
    str,
    typer.Argument(
        help="Hugging Face hub id, model folder, config.json, .gguf file, or the built-in smollm2.",
        metavar="MODEL",
        show_default=False,
    ),
]
ScalingOption = Annotated[
    str,
    typer.Option(
        help="Scaling as name:option=value,... or JSON; `ropewalk methods` lists them.",
        metavar="SPEC",
        show_default=False,
    ),
]
EngineOption = Annotated[
    str,
    typer.Option(
        help="Engine that will serve the model; `ropewalk engines` lists them.", metavar="NAME", show_default=False
    ),
]
TargetOption = Annotated[
    str,
    typer.Option(help="Length of the texts to read, in tokens: 32768, 32k, 1m.", metavar="LENGTH", show_default=False),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print one JSON document to stdout and nothing else.")]


def parse_optional_length(text: str, field: str) -> int | None:
    """Return the tokens of an option such as `32k`, or None if it was not given. Raises InputError if it is invalid."""
    return parse_length(text, field) if text else None
