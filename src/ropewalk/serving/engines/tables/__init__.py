"""Which rotary fields each architecture of an engine reads: one JSON file for each engine and version.

`python -m benchmarks.engine_tables` makes these files from the source code of the engines. The columns:

    scaling                which rope types change the frequencies: "any" that the engine has, "linear" only, those of
                           the architecture's "own" rotary code, or "none", whatever the configuration contains
    longrope               whether the lists short_factor and long_factor are read
    attention_factor       whether cos and sin (or q and k) are multiplied by the attention factor of a scaling
    softmax_factor         whether the softmax scale is multiplied by m(factor, mscale_all_dim)^2
    partial_rotary_factor  whether only a part of each head can be rotated
    mrope                  whether mrope_section is read
"""

from __future__ import annotations

import functools
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

TABLES_FOLDER = Path(__file__).parent


@dataclass(frozen=True)
class EngineTable:
    """The architectures of one engine.

    Attributes:
        package: the package that was read.
        version: its version.
        source: the files that were read.
        architectures: the row of each architecture, by the name under which the engine looks it up.
        aliases: other names of architectures.
    """

    package: str
    version: str
    source: str
    architectures: Mapping[str, Mapping[str, Any]]
    aliases: Mapping[str, str] = field(default_factory=dict)


@functools.cache
def load_table(engine: str) -> EngineTable:
    """Return the table of an engine, by its name on the command line."""
    return EngineTable(**json.loads((TABLES_FOLDER / f"{engine}.json").read_text(encoding="utf-8")))
