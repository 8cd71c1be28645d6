from __future__ import annotations

from dataclasses import MISSING, fields

from ropewalk.cli.output import Json, print_json, results
from ropewalk.scaling import REGISTRY


def command(json: Json = False) -> None:
    """List the scaling methods: name, options, formula, source."""
    rows = [
        {
            "name": cls.name,
            "aliases": list(cls.aliases),
            "options": {f.name: None if f.default is MISSING else f.default for f in fields(cls)},
            "required": [f.name for f in fields(cls) if f.default is MISSING],
            "formula": cls.formula,
            "source": cls.source,
        }
        for cls in REGISTRY.values()
    ]
    if json:
        print_json(rows)
        return
    for cls in REGISTRY.values():
        own = [f for f in fields(cls) if f.name != "original_length"]
        options = [f"{f.name} (needed)" if f.default is MISSING else f"{f.name}={f.default}" for f in own]
        results.print(f"[bold]{cls.name}[/bold]  {', '.join(options)}", highlight=False)
        results.print(f"    {cls.formula}\n    {cls.source}", highlight=False)
