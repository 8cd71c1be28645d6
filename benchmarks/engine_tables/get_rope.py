"""Engines whose model files build every rotary embedding with a function `get_rope`: vLLM and SGLang."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.engine_tables.syntax import (
    NOT_TEXT,
    TEMPERATURE_FIELDS,
    find_assigned_values,
    find_calls,
    find_words,
    get_argument,
    is_bound_to_literals,
    mentions,
    parse_file,
    reads_attribute,
)

_KINDS = ("any", "own", "type", "none")  # of the calls in one file, the first decides
_ROTARY = re.compile("rotary|^rope|_rope|RoPE", re.IGNORECASE)
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
        self._rope_calls: dict[str, list[RopeCall]] = {}
        self._imported_names: dict[str, dict[str, set[str]]] = {}

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
        if module not in self._rope_calls:
            self._rope_calls[module] = [
                RopeCall(function, get_argument(call, *self.argument), name.endswith("ScalingRotaryEmbedding"))
                for tree in self.trees(module)
                for owner in tree.body
                if not NOT_TEXT.search(getattr(owner, "name", ""))
                for function in _functions_of(owner)
                for name, call in find_calls(function)
                if name.rsplit(".", maxsplit=1)[-1] in ("get_rope", "get_rope_wrapper", "ScalingRotaryEmbedding")
            ]
        return self._rope_calls[module]

    def classify_scaling(self, module: str) -> str:
        """Return which scaling a module passes on: "any", "own", its "type" without a factor, or "none".

        "none" also if it has no rotary embedding at all. "unknown" if it builds one without `get_rope`, and if the
        files that it imports do not agree.
        """
        modules = self.find_text_modules(module)
        kinds = {self._classify(call) for name in modules for call in self.find_rope_calls(name)}
        if not kinds:
            return "unknown" if self._has_other_rotary(module) else "none"
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
            "temperature": self._reads_temperature(module),
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

    def find_parents(self, module: str) -> list[str]:
        """Return the modules from which a module imports the classes that its own classes are derived from."""
        bases = {
            word.id
            for tree in self.trees(module)
            for node in tree.body
            if isinstance(node, ast.ClassDef)
            for base in node.bases
            for word in ast.walk(base)
            if isinstance(word, ast.Name) and not NOT_TEXT.search(word.id) and "Process" not in word.id
        }
        return [name for name, names in self._imports(module).items() if names & bases]

    def _reads_temperature(self, module: str) -> bool:
        """Return whether a module, or each one that it may have its attention from, reads an attention temperature."""
        sources = self.find_text_modules(module) or [module]
        return any(mentions(tree, *TEMPERATURE_FIELDS) for tree in self.trees(module)) or all(
            any(mentions(tree, *TEMPERATURE_FIELDS) for tree in self.trees(name)) for name in sources
        )

    def _has_other_rotary(self, module: str, depth: int = 0) -> bool:
        """Return whether a module, or one that it imports, rotates in some other way than by `get_rope`."""
        classes = [
            node
            for tree in self.trees(module)
            for node in tree.body
            if not NOT_TEXT.search(getattr(node, "name", "")) and isinstance(node, ast.ClassDef | ast.FunctionDef)
        ]
        if any(_ROTARY.search(word) for node in classes for word in find_words(node)):
            return True
        return depth < _MAX_IMPORTS and any(self._has_other_rotary(name, depth + 1) for name in self._imports(module))

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

    def _imports(self, module: str) -> dict[str, set[str]]:
        """Return the modules in the same folders from which a module imports, with the names that are about text."""
        if module not in self._imported_names:
            found: dict[str, set[str]] = {}
            for node in (node for tree in self.trees(module) for node in ast.walk(tree)):  # also inside functions
                if not isinstance(node, ast.ImportFrom) or node.module is None:
                    continue
                path = node.module.partition(".models.")[2] or (node.module if node.level else "")
                name = next((part for part in reversed(path.split(".")) if part and self.trees(part)), "")
                names = {alias.name for alias in node.names if not NOT_TEXT.search(alias.name)}
                if name and names and name not in (module, "utils", "interfaces"):
                    found.setdefault(name, set()).update(names)
            self._imported_names[module] = found
        return self._imported_names[module]


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
