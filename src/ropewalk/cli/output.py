"""Output of every command: results go to standard output, progress and notes to standard error."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable
from dataclasses import MISSING, Field
from typing import Any

from rich.console import Console
from rich.text import Text

# Print texts as they are: rich could find markup or emoji codes in a path or a scaling.
console = Console(soft_wrap=True, markup=False, highlight=False, emoji=False)
err_console = Console(stderr=True, soft_wrap=True, markup=False, highlight=False, emoji=False)


def print_json(document: Any) -> None:
    """Print one JSON document to standard output. NaN and infinity, which JSON does not have, become null."""
    print(json.dumps(_replace_nonfinite(document), allow_nan=False))


def print_entry(name: str, options: Iterable[Field[Any]], *lines: str) -> None:
    """Print an entry of a list: a name with its options and their defaults, and indented lines that describe it."""
    shown = [f"{f.name} (required)" if f.default is MISSING else f"{f.name}={f.default}" for f in options]
    print_bold(name, "  " + ", ".join(shown))
    for line in lines:
        console.print(f"    {line}")


def print_bold(text: str, rest: str = "", color: str = "") -> None:
    """Print a line that begins with a bold text, in a color if given, and goes on as plain text."""
    console.print(Text.assemble((text, f"bold {color}"), rest))


def _replace_nonfinite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _replace_nonfinite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_replace_nonfinite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
