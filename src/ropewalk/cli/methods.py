"""`ropewalk methods`: the scaling methods, the position methods, and their options."""

from __future__ import annotations

from dataclasses import MISSING, fields
from typing import Any

from ropewalk.cli.options import JsonOption
from ropewalk.cli.output import print_entry, print_json
from ropewalk.positions import REGISTRY as POSITION_METHODS
from ropewalk.scaling import REGISTRY as SCALINGS

_HIDDEN_OPTIONS = ("original_length", "logit_scaling")  # every method, or every position method, has them


def command(json: JsonOption = False) -> None:
    """List the methods with their options, formulas and sources: the scalings, then the position methods."""
    methods: list[tuple[str, Any]] = [("frequencies", cls) for cls in SCALINGS.values()]
    methods += [("positions", cls) for cls in POSITION_METHODS.values()]
    if json:
        print_json(
            [
                {
                    "name": cls.name,
                    "changes": changes,
                    "aliases": list(cls.aliases),
                    "options": {f.name: None if f.default is MISSING else f.default for f in fields(cls)},
                    "required": [f.name for f in fields(cls) if f.default is MISSING],
                    "formula": cls.formula,
                    "source": cls.source,
                }
                for changes, cls in methods
            ]
        )
        return
    for _, cls in methods:
        options = [f for f in fields(cls) if f.name not in _HIDDEN_OPTIONS]
        print_entry(cls.name, options, cls.formula, cls.source)
