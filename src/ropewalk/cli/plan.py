from __future__ import annotations

import json as jsonlib
from typing import Annotated

import typer

from ropewalk.cli.output import Json, Model, print_json, results
from ropewalk.lengths import parse_length
from ropewalk.planning import plan


def command(
    model: Model,
    target: Annotated[str, typer.Option(help="Tokens to read: 32768, 32k, 1m.", show_default=False)],
    json: Json = False,
) -> None:
    """Say which scaling and factor a target length needs, why, and what it costs. Needs no weights."""
    found = plan(model, parse_length(target, "target"))
    if json:
        print_json(found.to_dict())
        return
    results.print(f"[bold]{found.scaling}[/bold]" if found.needed else "[bold]nothing to do[/bold]", highlight=False)
    for reason in found.reasons:
        results.print(f"  - {reason}", highlight=False)
    if found.rope_parameters is not None:
        results.print("config.json for transformers 5:")
        written = {
            "max_position_embeddings": found.max_position_embeddings,
            "rope_parameters": found.rope_parameters,
        }
        print(jsonlib.dumps(written, indent=2))
    if found.kv_cache_bytes is not None:
        results.print(f"KV cache of one text of {found.target:,} tokens: {found.kv_cache_bytes / 2**30:.2f} GiB")
