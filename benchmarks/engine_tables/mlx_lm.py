"""MLX-LM: one file for each architecture in mlx_lm/models/, whose dataclasses list the fields that it reads."""

from __future__ import annotations

import ast
from pathlib import Path
from typing import Any

from benchmarks.engine_tables.syntax import (
    TEMPERATURE_FIELDS,
    find_calls,
    get_argument,
    mentions,
    parse_file,
    read_dict_literal,
)

PACKAGE = "mlx-lm"
SOURCE = "mlx_lm/models/*.py, mlx_lm/utils.py (MODEL_REMAPPING)"

# Files that hold no architecture.
_SHARED_FILES = {"rope_utils", "base", "cache", "switch_layers", "activations", "pipeline", "mla", "ssm", "gated_delta"}
_ROPE_FIELDS = {"rope_theta", "rope_scaling", "rope_parameters", "partial_rotary_factor", "rotary_pct"}
_PARTIAL_FIELDS = ("partial_rotary_factor", "partial_rotary_factors", "rotary_pct", "rotary_dim")


def read_table(folder: Path) -> dict[str, Any]:
    """Return the rows of all architectures, by model type, and the names that stand for another one."""
    trees = {
        path.stem: parse_file(path)
        for path in sorted((folder / "mlx_lm" / "models").glob("*.py"))
        if path.stem not in _SHARED_FILES
    }
    rows = {name: _read_row(name, trees) for name in trees}
    utils = parse_file(folder / "mlx_lm" / "utils.py")
    return {
        "architectures": {name: row for name, row in rows.items() if row is not None},
        "aliases": read_dict_literal(utils, "MODEL_REMAPPING"),
    }


def _read_row(name: str, trees: dict[str, ast.Module]) -> dict[str, Any] | None:
    """Return the row of one file; None if it holds no architecture.

    A file without a rotary embedding has the attention of another file, or wraps a complete model of it.
    """
    tree = trees[name]
    if not any(isinstance(node, ast.ClassDef) and node.name.startswith("Model") for node in tree.body):
        return None
    chains = _chains_to_rotary(name, trees)
    if len(chains) > 1:
        return {"one_of": [chain[1] for chain in chains]}  # the text part of the configuration decides
    sources = [trees[other] for other in chains[0]] if chains else [tree]
    attention = sources[-1]
    with_base = (source for source in sources if "rope_theta" in _read_fields(source))
    fields = _read_fields(next(with_base, attention)) | _read_fields(tree)
    scaling = _classify_scaling(attention)
    rope_theta = fields.get("rope_theta")
    row = {
        "scaling": scaling,
        "longrope": scaling == "any" or mentions(attention, "SuScaledRoPE"),
        "attention_factor": scaling == "any" or mentions(attention, "mscale", "SuScaledRoPE"),
        "softmax_factor": any(mentions(source, "apply_yarn_mscale", "mscale_all_dim") for source in sources),
        "partial_rotary_factor": any(mentions(source, *_PARTIAL_FIELDS) for source in sources),
        "temperature": any(mentions(source, *TEMPERATURE_FIELDS) for source in sources),
        "mrope": False,  # models of text: no file rotates by more than one position
        "rope_theta": rope_theta if isinstance(rope_theta, float) else None,
        "rope_parameters": _classify_rope_parameters(sources) if "rope_parameters" in fields else "ignored",
        "required": sorted(name for name, default in fields.items() if default == "required"),
        "accepted_types": _read_accepted_types(tree),
    }
    return row


def _chains_to_rotary(name: str, trees: dict[str, ast.Module]) -> list[list[str]]:
    """Return each chain of imports from a file to one that builds a rotary embedding, which may be the file itself."""
    if _find_rotary_calls(trees[name]):
        return [[name]]
    imported = [other for other in _imported_files(trees[name], trees) if other != name]
    return [[name, *chain] for other in imported for chain in _chains_to_rotary(other, trees)]


def _imported_files(tree: ast.Module, trees: dict[str, ast.Module]) -> list[str]:
    """Return the architectures that a file imports from the same folder."""
    found: list[str] = []
    for node in tree.body:
        if isinstance(node, ast.ImportFrom) and node.level == 1:
            names = [alias.name for alias in node.names] if node.module is None else [node.module]
            found += [name for name in names if name in trees and name not in found]
    return found


def _find_rotary_calls(tree: ast.Module) -> list[tuple[str, ast.Call]]:
    """Return the calls that build or apply a rotary embedding."""
    own_classes = {
        node.name for node in tree.body if isinstance(node, ast.ClassDef) and mentions(node, "rope")
        and node.name.endswith(("RoPE", "RotaryEmbedding"))
    }  # fmt: skip
    shared = {"initialize_rope", "nn.RoPE", "SuScaledRoPE", "YarnRoPE", "mx.fast.rope"}
    return [(name, call) for name, call in find_calls(tree) if name in shared | own_classes]


def _classify_scaling(tree: ast.Module) -> str:
    """Return "any" type, "linear" only, by its "own" code, or "none" of them."""
    kinds, has_fields = {"none"}, mentions(tree, "rope_scaling", "rope_parameters")
    for name, call in _find_rotary_calls(tree):
        if name == "initialize_rope":
            argument = get_argument(call, "scaling_config", 3)
            is_none = argument is None or (isinstance(argument, ast.Constant) and argument.value is None)
            kinds.add("none" if is_none else "any")
        elif name == "nn.RoPE":
            kinds.add("linear" if has_fields and get_argument(call, "scale", 3) is not None else "none")
        else:
            kinds.add("own" if has_fields else "none")
    return next(kind for kind in ("any", "own", "linear", "none") if kind in kinds)


def _read_fields(tree: ast.Module) -> dict[str, Any]:
    """Return the rope fields of a file's dataclasses with their defaults; "required" for a field without one."""
    fields: dict[str, Any] = {}
    for node in tree.body:
        if not isinstance(node, ast.ClassDef) or not any("Args" in ast.unparse(base) for base in node.bases):
            continue
        for line in node.body:
            if not isinstance(line, ast.AnnAssign) or ast.unparse(line.target) not in _ROPE_FIELDS:
                continue
            name = ast.unparse(line.target)
            if line.value is None:
                fields[name] = "required"
            elif isinstance(line.value, ast.Constant):
                value = line.value.value
                fields[name] = float(value) if isinstance(value, int | float) and name == "rope_theta" else value
            else:
                fields[name] = None
    return fields


def _classify_rope_parameters(sources: list[ast.Module]) -> str:
    """Return whether `rope_parameters` is read with its "scaling", or only for its "base"."""
    for tree in sources:
        for node in ast.walk(tree):
            is_scaling = isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "self.rope_scaling"
            if is_scaling and "rope_parameters" in ast.unparse(node.value):
                return "scaling"
        for name, call in _find_rotary_calls(tree):
            argument = get_argument(call, "scaling_config", 3) if name == "initialize_rope" else None
            if argument is not None and not mentions(argument, "rope_scaling") and mentions(tree, "rope_parameters"):
                is_named = isinstance(argument, ast.Name) or mentions(argument, "rope_parameters")
                if is_named:
                    return "scaling"
    return "base"


def _read_accepted_types(tree: ast.Module) -> list[str]:
    """Return the rope types that a file accepts, if its `__post_init__` raises an error for all others."""
    for node in ast.walk(tree):
        if not isinstance(node, ast.If) or not any(isinstance(line, ast.Raise) for line in node.body):
            continue
        test = node.test
        if not isinstance(test, ast.Compare) or not mentions(test, "type", "rope_type"):
            continue
        if isinstance(test.ops[0], ast.NotIn | ast.NotEq):
            allowed = ast.literal_eval(test.comparators[0])
            return sorted([allowed] if isinstance(allowed, str) else allowed)
    return []
