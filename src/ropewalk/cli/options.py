"""Arguments and options that several commands share."""

from __future__ import annotations

from typing import Annotated

import typer

from ropewalk.lengths import parse_length

_SCALINGS_HELP = "Scaling as name:option=value,... or JSON; repeat the option to compare several."
_DTYPE_HELP = "bfloat16, float16 or float32; by default the best that the device supports."
_MODEL_HELP = "Hugging Face hub id, model folder, config.json, .gguf file, or the built-in smollm2."
_SCALING_HELP = "Scaling as name:option=value,... or JSON; `ropewalk methods` lists them."
_ENGINE_HELP = "Engine that will serve the model; `ropewalk engines` lists them."
_TARGET_HELP = "Length of the texts to read, in tokens: 32768, 32k, 1m."
_API_KEY_HELP = "With --url: name of the environment variable with the key of the server; by default no key is sent."
_JSON_HELP = "Print one JSON document to stdout and nothing else."

ModelArgument = Annotated[str, typer.Argument(help=_MODEL_HELP, metavar="MODEL", show_default=False)]
ScalingOption = Annotated[str, typer.Option(help=_SCALING_HELP, show_default=False)]
ScalingsOption = Annotated[list[str], typer.Option(help=_SCALINGS_HELP)]
DtypeOption = Annotated[str, typer.Option(help=_DTYPE_HELP)]
EngineOption = Annotated[str, typer.Option(help=_ENGINE_HELP, show_default=False)]
TargetOption = Annotated[str, typer.Option(help=_TARGET_HELP, show_default=False)]
ApiKeyOption = Annotated[str, typer.Option("--api-key-env", metavar="NAME", help=_API_KEY_HELP)]
JsonOption = Annotated[bool, typer.Option("--json", help=_JSON_HELP)]


def parse_optional_length(text: str, field: str) -> int | None:
    """Return the tokens of an option such as `32k`, or None if it was not given. Raises InputError if it is invalid."""
    return parse_length(text, field) if text else None
