"""`ropewalk methods`: the scaling methods and their options."""

from __future__ import annotations

from dataclasses import MISSING, fields

from ropewalk.cli.options import JsonOption
from ropewalk.cli.output import print_entry, print_json
from ropewalk.scaling import REGISTRY


def command(json: JsonOption = False) -> None:
    """List the scaling methods with their options, formulas and sources."""
    if json:
        print_json(
            [
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
        )
        return
    for cls in REGISTRY.values():
        options = [f for f in fields(cls) if f.name != "original_length"]  # every method has it
        print_entry(cls.name, options, cls.formula, cls.source)
