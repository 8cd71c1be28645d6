"""Engines whose model files build every rotary embedding with a function `get_rope`: vLLM and SGLang."""

from __future__ import annotations

import ast
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.engine_tables.syntax import (
    NOT_TEXT,
    find_assigned_values,
    find_calls,
    get_argument,
    is_bound_to_literals,
    mentions,
    parse_file,
    reads_attribute,
)

_KINDS = ("any", "own", "type", "none")  # of the calls in one file, the first decides
_MAX_IMPORTS = 3  # how far to follow a file that has its attention from another file


@dataclass(frozen=True)
class RopeCall:
    """A call that builds a rotary embedding.

    Attributes:
        owner: the function around it.
        scaling: the argument with the scaling.
        is_own_class: whether it builds a class of its own with the scaling, without `get_rope`.
    """

    owner: ast.AST
    scaling: ast.expr | None
    is_own_class: bool


class ModelFiles:
    """The model files of an engine.

    Args:
        folders: where they are; the name of a module is that of a file or a package in one of them.
        argument: name and position of the argument of `get_rope` that holds the scaling.
    """

    def __init__(self, folders: Iterable[Path], argument: tuple[str, int]) -> None:
        self.folders = tuple(folders)
        self.argument = argument
        self._trees: dict[str, list[ast.Module]] = {}

    def trees(self, module: str) -> list[ast.Module]:
        """Return the files of a module; empty if there is no such module."""
        name = module.rsplit(".", maxsplit=1)[-1]
        if name not in self._trees:
            paths = [
                path for folder in self.folders for path in (folder / f"{name}.py", folder / name) if path.exists()
            ]
            files = [file for path in paths for file in (sorted(path.rglob("*.py")) if path.is_dir() else [path])]
            self._trees[name] = [parse_file(file) for file in files]
        return self._trees[name]

    def find_text_modules(self, module: str, depth: int = 0) -> list[str]:
        """Return the modules that build the rotary embeddings of a module's text layers: itself or imported ones."""
        if self.find_rope_calls(module):
            return [module]
        found: list[str] = []
        if depth < _MAX_IMPORTS:
            for name in self._imports(module):
                found += [other for other in self.find_text_modules(name, depth + 1) if other not in found]
        return found

    def find_rope_calls(self, module: str) -> list[RopeCall]:
        """Return the calls of `get_rope` in the classes of a module that are about text."""
        return [
            RopeCall(function, get_argument(call, *self.argument), name.endswith("ScalingRotaryEmbedding"))
            for tree in self.trees(module)
            for owner in tree.body
            if not NOT_TEXT.search(getattr(owner, "name", ""))
            for function in _functions_of(owner)
            for name, call in find_calls(function)
            if name.rsplit(".", maxsplit=1)[-1] in ("get_rope", "get_rope_wrapper", "ScalingRotaryEmbedding")
        ]

    def classify_scaling(self, module: str) -> str:
        """Return which scaling a module passes on: "any", "own", its "type" without a factor, or "none".

        "unknown" if it builds no rotary embedding, and if the files that it imports do not agree.
        """
        modules = self.find_text_modules(module)
        kinds = {self._classify(call) for name in modules for call in self.find_rope_calls(name)}
        if not kinds:
            return "unknown"
        if len({self._summary(name) for name in modules}) > 1:
            return "unknown"
        return next(kind for kind in _KINDS if kind in kinds)

    def read_columns(self, module: str) -> dict[str, Any]:
        """Return the columns that follow from the scaling that a module passes on."""
        scaling = self.classify_scaling(module)
        return {
            "scaling": scaling,
            "longrope": scaling == "any",
            "attention_factor": scaling in ("any", "own"),
            "softmax_factor": self.mentions(module, "mscale_all_dim"),
        }

    def mentions(self, module: str, *words: str) -> bool:
        """Return whether a module, or the module that it has its text layers from, mentions one of the words."""
        names = {module, *self.find_text_modules(module)}
        return any(mentions(tree, *words) for name in names for tree in self.trees(name))

    def has_legacy_fields(self, module: str) -> bool:
        """Return whether a module reads rope_theta or rope_scaling of the configuration, but not rope_parameters."""
        trees = [tree for name in {module, *self.find_text_modules(module)} for tree in self.trees(name)]
        if any(reads_attribute(tree, "rope_parameters") or mentions(tree, "get_rope_config") for tree in trees):
            return False
        return any(reads_attribute(tree, name) for tree in trees for name in ("rope_theta", "rope_scaling"))

    def _summary(self, module: str) -> str:
        kinds = {self._classify(call) for call in self.find_rope_calls(module)}
        return next(kind for kind in _KINDS if kind in kinds)

    def _classify(self, call: RopeCall) -> str:
        if call.is_own_class:
            return "own"
        argument = call.scaling
        is_local = isinstance(argument, ast.Name) and is_bound_to_literals(call.owner, argument.id)
        values = find_assigned_values(call.owner, argument.id) if is_local else [argument]
        kinds = {_classify_value(value) for value in values}
        return next(kind for kind in _KINDS if kind in kinds)

    def _imports(self, module: str) -> list[str]:
        """Return the modules in the same folders from which a module imports classes that are about text."""
        found = []
        for tree in self.trees(module):
            for node in tree.body:
                if not isinstance(node, ast.ImportFrom) or node.module is None:
                    continue
                is_model = self.trees(node.module) and (node.level or ".models." in node.module)
                if is_model and any(not NOT_TEXT.search(alias.name) for alias in node.names):
                    found.append(node.module.rsplit(".", maxsplit=1)[-1])
        return [name for name in dict.fromkeys(found) if name not in (module, "utils", "interfaces")]


def _classify_value(value: ast.expr | None) -> str:
    """Return which scaling an argument of `get_rope` passes on; see `classify_scaling`."""
    if value is None or isinstance(value, ast.Constant):
        return "none"
    if not isinstance(value, ast.Dict) or None in value.keys:  # {**config.rope_parameters, ...}
        return "any"
    if mentions(value, "factor"):
        return "own"
    passes_type = any(
        isinstance(key, ast.Constant) and key.value == "rope_type" and not isinstance(item, ast.Constant)
        for key, item in zip(value.keys, value.values, strict=True)
    )
    return "type" if passes_type else "none"


def _functions_of(owner: ast.AST) -> Iterator[ast.AST]:
    """Yield the methods of a class, or a function itself."""
    if isinstance(owner, ast.ClassDef):
        yield from (node for node in owner.body if isinstance(node, ast.FunctionDef))
    elif isinstance(owner, ast.FunctionDef):
        yield owner
