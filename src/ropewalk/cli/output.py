"""Where a command writes: results to standard output, words for people to standard error."""

from __future__ import annotations

import json
import math
from typing import Annotated, Any

import typer
from rich.console import Console

Model = Annotated[str, typer.Argument(help="Hub id, folder, config.json, .gguf file, or smollm2.", show_default=False)]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON document and nothing else on standard output.")]

people = Console(stderr=True, soft_wrap=True)
results = Console(soft_wrap=True)


def print_json(document: Any) -> None:
    """One JSON document on standard output; numbers that JSON has no name for as null."""
    print(json.dumps(_finite(document), allow_nan=False))


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
