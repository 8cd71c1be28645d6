"""`ropewalk plan`: the scaling that a target length needs."""

from __future__ import annotations

import json as jsonlib

from ropewalk.cli.options import JsonOption, ModelArgument, TargetOption
from ropewalk.cli.output import console, print_bold, print_json
from ropewalk.lengths import parse_length
from ropewalk.planning import plan


def command(model: ModelArgument, target: TargetOption, json: JsonOption = False) -> None:
    """Recommend a scaling and its factor for a target length, with reasons and KV cache size. Loads no weights."""
    result = plan(model, parse_length(target, "target"))
    if json:
        print_json(result.to_dict())
        return
    print_bold(str(result.scaling) if result.needed else "nothing to do")
    for reason in result.reasons:
        console.print(f"  - {reason}")
    if result.rope_parameters is not None:
        console.print("config.json for transformers 5:")
        changes = {
            "max_position_embeddings": result.max_position_embeddings,
            "rope_parameters": result.rope_parameters,
        }
        print(jsonlib.dumps(changes, indent=2))
    if result.kv_cache_bytes is not None:
        gibibytes = result.kv_cache_bytes / 2**30
        console.print(f"KV cache for one sequence of {result.target:,} tokens: {gibibytes:.2f} GiB")
