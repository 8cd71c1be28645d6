"""transformers 5: one folder for each architecture, where a rotary module names its configuration class.

transformers 4 is written in the same way, so `transformers4.py` reads it with the functions of this file.
"""

from __future__ import annotations

import ast
import functools
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.engine_tables.syntax import NOT_TEXT, TEMPERATURE_FIELDS, mentions, parse_file

PACKAGE = "transformers"
SOURCE = "src/transformers/models/*/configuration_*.py, modeling_*.py"

_TEXT_PARTS = ("text_config", "thinker_config", "llm_config")
_ROPE_FIELDS = ("rope_theta", "rope_parameters", "rope_scaling", "rotary_dim")
_PARTIAL_FIELDS = ("partial_rotary_factor", "rotary_pct", "rotary_dim")
_OTHER_FRAMEWORKS = ("modeling_tf_", "modeling_flax_")
_LOCAL_BASE_FIELDS = ("rope_local_base_freq", "local_rope_theta")


@dataclass(frozen=True)
class ConfigClass:
    """A configuration class.

    Attributes:
        model_type: its model type.
        node: its source code.
        folder: the folder of its architecture in transformers/models/.
    """

    model_type: str
    node: ast.ClassDef
    folder: Path


def read_table(folder: Path) -> dict[str, Any]:
    """Return the rows of all architectures, by model type.

    `aliases` has other names that AutoConfig knows, `others` the model types without a rotary embedding of text.
    """
    models = folder / "transformers" / "models"
    classes = {node.node.name: node for node in _find_config_classes(models)}
    model_classes = dict(_read_auto_model_names(models / "auto"))
    rows: dict[str, Any] = {}
    others: set[str] = set()
    for config_class in classes.values():
        row = _read_row(_find_implementation(config_class, classes, model_classes), classes)
        if row is None:
            others.add(config_class.model_type)
        elif "text_part" not in row or config_class.model_type not in rows:
            rows[config_class.model_type] = row
    aliases = {}
    for name, class_name in _read_auto_config_names(models / "auto"):
        if name not in rows and name not in others:
            if class_name in classes:
                aliases[name] = classes[class_name].model_type
            else:
                others.add(name)
    return {"architectures": rows, "aliases": aliases, "others": sorted(others - rows.keys())}


def _read_auto_model_names(folder: Path) -> Iterator[tuple[str, str]]:
    """Yield the model types in the mapping of AutoModel, each with the name of its class."""
    path = folder / "modeling_auto.py"
    for node in ast.walk(parse_file(path)) if path.exists() else ():
        if isinstance(node, ast.Tuple) and len(node.elts) == 2:
            name, class_name = (getattr(item, "value", None) for item in node.elts)
            if isinstance(name, str) and isinstance(class_name, str) and class_name.endswith("Model"):
                yield name, class_name


def _find_implementation(
    config_class: ConfigClass, classes: dict[str, ConfigClass], model_classes: dict[str, str]
) -> ConfigClass:
    """Return the configuration class of the architecture that implements a model type, nearly always its own.

    EXAONE 3 and InternLM3, for example, have a configuration of their own and the model of Llama.
    """
    if any(config_class.folder.glob("modeling_*.py")):
        return config_class
    name = model_classes.get(config_class.model_type, "").removesuffix("Model")
    return classes.get(f"{name}Config", config_class)


def _read_auto_config_names(folder: Path) -> Iterator[tuple[str, str]]:
    """Yield the model types in the mapping of AutoConfig, each with the name of its class."""
    for path in (folder / "configuration_auto.py", folder / "auto_mappings.py"):  # the second is of transformers 5 only
        for node in ast.walk(parse_file(path)) if path.exists() else ():
            pairs = [node.elts] if isinstance(node, ast.Tuple) and len(node.elts) == 2 else []
            if isinstance(node, ast.Dict):
                pairs = [[key, value] for key, value in zip(node.keys, node.values, strict=True) if key is not None]
            for pair in pairs:
                name, class_name = (getattr(item, "value", None) for item in pair)
                if isinstance(name, str) and isinstance(class_name, str) and class_name.endswith("Config"):
                    yield name, class_name


def _find_config_classes(models: Path) -> Iterator[ConfigClass]:
    """Yield the configuration classes that have a model type."""
    for path in sorted(models.glob("*/configuration_*.py")):
        if path.parent.name == "auto":
            continue
        for node in parse_file(path).body:
            if isinstance(node, ast.ClassDef):
                value = _find_class_variable(node, "model_type")
                if isinstance(value, ast.Constant) and value.value:
                    yield ConfigClass(value.value, node, path.parent)


def _find_class_variable(node: ast.ClassDef, name: str) -> ast.expr | None:
    for line in node.body:
        targets = line.targets if isinstance(line, ast.Assign) else [getattr(line, "target", None)]
        if any(isinstance(target, ast.Name) and target.id == name for target in targets):
            value: ast.expr | None = getattr(line, "value", None)
            return value
    return None


def _read_row(config_class: ConfigClass, classes: dict[str, ConfigClass]) -> dict[str, Any] | None:
    """Return the row of one model type; None if it has no rotary embedding of text."""
    is_composite, text_part = _find_text_part(config_class, classes)
    if is_composite:
        return {"text_part": text_part}
    if NOT_TEXT.search(config_class.node.name):
        return None
    modules = _parse_modeling_files(config_class.folder)
    rotary = _find_rotary_class(config_class, modules)
    if rotary is not None:
        return _read_rotary_class(rotary, modules)
    rotates = any(mentions(tree, "apply_rotary_pos_emb", "rotary_dim") for tree in modules)
    if not rotates or not _has_rope_fields(config_class):
        return None
    return _read_rotary_class(None, modules)  # the attention layers rotate without a module


def _find_rotary_class(config_class: ConfigClass, modules: list[ast.Module]) -> ast.ClassDef | None:
    """Return the rotary module that is built from a configuration class.

    Usually its argument is annotated with the class. Where none is, the class that holds the configuration of the text
    is named instead, or none, and the folder has one module.
    """
    rotary_classes = [
        node
        for tree in modules
        for node in tree.body
        if isinstance(node, ast.ClassDef) and "Rotary" in node.name and not NOT_TEXT.search(node.name)
    ]
    for node in rotary_classes:
        if mentions(_annotation(node), config_class.node.name):
            return node
    if not _has_rope_fields(config_class):
        return None
    return min(rotary_classes, key=lambda node: not mentions(node, "ROPE_INIT_FUNCTIONS"), default=None)


def _has_rope_fields(config_class: ConfigClass) -> bool:
    """Return whether a configuration class has rope fields, itself or in the rest of its file if it is alone there."""
    if mentions(config_class.node, *_ROPE_FIELDS):
        return True
    files = [parse_file(path) for path in config_class.folder.glob("configuration_*.py")]
    classes = [node for tree in files for node in tree.body if isinstance(node, ast.ClassDef)]
    is_alone = sum(_find_class_variable(node, "model_type") is not None for node in classes) == 1
    return is_alone and any(mentions(tree, *_ROPE_FIELDS, "rotary") for tree in files)


def _annotation(node: ast.ClassDef) -> ast.AST:
    """Return the annotation of the argument `config` of a class; an empty module if it has none."""
    for line in node.body:
        if isinstance(line, ast.FunctionDef) and line.name == "__init__":
            for argument in line.args.args:
                if argument.arg == "config" and argument.annotation is not None:
                    return argument.annotation
    return ast.Module(body=[], type_ignores=[])


def _read_rotary_class(rotary: ast.ClassDef | None, modules: list[ast.Module]) -> dict[str, Any]:
    """Return the columns of an architecture from its rotary module and the rest of its files."""
    is_shared = rotary is not None and mentions(rotary, "ROPE_INIT_FUNCTIONS")
    has_own = any(mentions(tree, "rope_scaling") for tree in modules)
    scaling = "any" if is_shared else "own" if has_own else "none"
    default = _find_default_function(rotary)
    partial = is_shared if default is None else mentions(default, *_PARTIAL_FIELDS)
    if not is_shared and default is None:
        partial = any(mentions(tree, *_PARTIAL_FIELDS) for tree in modules)
    return {
        "scaling": scaling,
        "longrope": is_shared,
        "attention_factor": is_shared and mentions(rotary, "attention_scaling"),
        "softmax_factor": any(mentions(tree, "mscale_all_dim") for tree in modules),
        "partial_rotary_factor": partial,
        "mrope": any(mentions(tree, "mrope_section") for tree in modules),
        "layer_types": (rotary is not None and mentions(rotary, "layer_types"))
        or any(mentions(tree, *_LOCAL_BASE_FIELDS) for tree in modules),
        "temperature": any(mentions(tree, *TEMPERATURE_FIELDS) for tree in modules),
    }


def _find_default_function(rotary: ast.ClassDef | None) -> ast.FunctionDef | None:
    """Return the function that computes the unscaled frequencies, which transformers 4 shares among all classes."""
    for line in rotary.body if rotary is not None else ():
        if isinstance(line, ast.FunctionDef) and line.name == "compute_default_rope_parameters":
            return line
    return None


def _find_text_part(config_class: ConfigClass, classes: dict[str, ConfigClass]) -> tuple[bool, str | None]:
    """Return whether a class holds another one for text, and the model type of that one if it is always the same."""
    for name in ("sub_configs_defaults", "sub_configs"):  # of transformers 5 and 4
        parts = _find_class_variable(config_class.node, name)
        for key, value in zip(parts.keys, parts.values, strict=True) if isinstance(parts, ast.Dict) else ():
            if isinstance(key, ast.Constant) and key.value in _TEXT_PARTS:
                text_class = classes.get(ast.unparse(value))
                return True, None if text_class is None else text_class.model_type
    return False, None


@functools.cache
def _parse_modeling_files(folder: Path) -> list[ast.Module]:
    """Return the files of an architecture that build or apply a rotary embedding."""
    paths = [path for path in sorted(folder.glob("modeling_*.py")) if not path.name.startswith(_OTHER_FRAMEWORKS)]
    return [parse_file(path) for path in paths if "otary" in path.read_text(encoding="utf-8")]
