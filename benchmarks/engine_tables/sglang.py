"""SGLang: model files that list their classes in `EntryClass`, by the name in `architectures` of a config.json."""

from __future__ import annotations

import ast
from pathlib import Path
from typing import Any

from benchmarks.engine_tables.get_rope import ModelFiles
from benchmarks.engine_tables.syntax import parse_file

PACKAGE = "sglang"
SOURCE = "python/sglang/srt/models/*.py"


def read_table(folder: Path) -> dict[str, Any]:
    """Return the rows of all architectures, by the name in `architectures` of a config.json."""
    models = folder / "sglang" / "srt" / "models"
    files = ModelFiles([models], ("rope_scaling", 5))
    rows = {}
    for path in sorted(models.glob("*.py")):
        for name in _entry_classes(parse_file(path)):
            rows[name] = _read_row(path.stem, files)
    return {"architectures": rows}


def _read_row(module: str, files: ModelFiles) -> dict[str, Any]:
    return {
        **files.read_columns(module),
        "partial_rotary_factor": files.mentions(module, "partial_rotary_factor", "rotary_pct", "rotary_dim"),
        "mrope": files.mentions(module, "mrope_section"),
    }


def _entry_classes(tree: ast.Module) -> list[str]:
    """Return the classes that a file registers."""
    for node in tree.body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "EntryClass":
            items = node.value.elts if isinstance(node.value, ast.List | ast.Tuple) else [node.value]
            return [ast.unparse(item) for item in items]
    return []
