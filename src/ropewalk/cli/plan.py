"""`ropewalk plan`: the scaling that a target length needs."""

from __future__ import annotations

import json as jsonlib

from ropewalk.cli.options import JsonOption, ModelArgument, TargetOption
from ropewalk.cli.output import console, print_bold, print_json
from ropewalk.lengths import parse_length
from ropewalk.planning import plan


def command(model: ModelArgument, target: TargetOption, json: JsonOption = False) -> None:
    """Recommend a scaling and its factor for a target length, with reasons and KV cache size. Loads no weights.

    The changes of config.json, or of the fields of a GGUF file, are read again before they are printed.
    """
    from ropewalk.serving.planned_changes import find_planned_changes

    result = plan(model, parse_length(target, "target"))
    changes = find_planned_changes(model, result)
    if json:
        print_json({**result.to_dict(), "changes": changes})
        return
    print_bold(str(result.scaling) if result.needed else "nothing to do")
    for reason in result.reasons:
        console.print(f"  - {reason}")
    if changes:
        is_gguf = any("." in name for name in changes)  # llama.rope.scaling.type, for example
        file = "fields of the GGUF file" if is_gguf else "config.json for transformers 5"
        console.print(f"{file} (null removes a field):")
        print(jsonlib.dumps(changes, indent=2))
    if result.kv_cache_bytes is not None:
        gibibytes = result.kv_cache_bytes / 2**30
        console.print(f"KV cache for one sequence of {result.target:,} tokens: {gibibytes:.2f} GiB")
