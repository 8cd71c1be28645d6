"""Questions about Python source code that the readers of several engines ask."""

from __future__ import annotations

import ast
import functools
import re
from pathlib import Path

# Classes that rotate positions in an image or in a recording, not in a text.
NOT_TEXT = re.compile("Vision|Visual|ViT|Vit|Audio|Speech|Siglip|CLIP|Patch|Encoder|Whisper")
# The fields that scale the attention of long texts by their positions (Llama 4, Ministral 3).
TEMPERATURE_FIELDS = ("attn_temperature_tuning", "llama_4_scaling_beta", "llama_4_scaling")


def parse_file(path: Path) -> ast.Module:
    """Parse one Python file."""
    return ast.parse(path.read_text(encoding="utf-8"))


@functools.cache
def find_calls(tree: ast.AST) -> tuple[tuple[str, ast.Call], ...]:
    """Return every call with the dotted name that is called, such as `nn.RoPE`."""
    return tuple((_dotted_name(node.func), node) for node in ast.walk(tree) if isinstance(node, ast.Call))


def get_argument(call: ast.Call, name: str, position: int) -> ast.expr | None:
    """Return an argument by its name, or by its position; None if the call does not pass it."""
    for keyword in call.keywords:
        if keyword.arg == name:
            return keyword.value
    return call.args[position] if len(call.args) > position else None


def mentions(tree: ast.AST, *words: str) -> bool:
    """Return whether an attribute, a name, a keyword or a string constant is one of these words."""
    return not find_words(tree).isdisjoint(words)


def reads_attribute(tree: ast.AST, name: str) -> bool:
    """Return whether code reads an attribute, as `config.NAME` or `getattr(config, "NAME")`."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and node.attr == name and isinstance(node.ctx, ast.Load):
            return True
        if isinstance(node, ast.Call) and _dotted_name(node.func) == "getattr" and mentions(node.args[1], name):
            return True
    return False


def find_assigned_values(function: ast.AST, name: str) -> list[ast.expr]:
    """Return the expressions that a function assigns to a local variable."""
    values = []
    for node in ast.walk(function):
        targets = node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", None)]
        is_assignment = isinstance(node, ast.Assign | ast.AnnAssign) and node.value is not None
        if is_assignment and any(isinstance(target, ast.Name) and target.id == name for target in targets):
            values.append(node.value)
    return values


def is_bound_to_literals(function: ast.AST, name: str) -> bool:
    """Return whether a function only ever assigns dicts that it writes out, or constants, to a local variable."""
    arguments = getattr(function, "args", None)
    if isinstance(arguments, ast.arguments) and mentions(arguments, name):
        return False
    for node in ast.walk(function):
        is_unpacked = isinstance(node, ast.Tuple) and isinstance(node.ctx, ast.Store) and mentions(node, name)
        is_updated = isinstance(node, ast.Call) and _dotted_name(node.func) == f"{name}.update"
        if is_unpacked or is_updated:
            return False
    values = find_assigned_values(function, name)
    return bool(values) and all(isinstance(value, ast.Dict | ast.Constant) for value in values)


def read_dict_literal(tree: ast.Module, name: str) -> dict[object, object]:
    """Return a dict of constants that a module assigns to a name."""
    for node in tree.body:
        if isinstance(node, ast.Assign) and any(isinstance(t, ast.Name) and t.id == name for t in node.targets):
            return dict(ast.literal_eval(node.value))
    raise ValueError(f"the module assigns no {name}")


@functools.cache
def find_words(tree: ast.AST) -> frozenset[str]:
    """Return the attributes, names, keywords and string constants of a piece of code."""
    found = (getattr(node, field, None) for node in ast.walk(tree) for field in ("attr", "id", "arg", "value"))
    return frozenset(word for word in found if isinstance(word, str))


def _dotted_name(node: ast.expr) -> str:
    """Return the source code of a name with attributes; "" for every other expression."""
    if isinstance(node, ast.Attribute):
        return f"{_dotted_name(node.value)}.{node.attr}"
    return node.id if isinstance(node, ast.Name) else ""
