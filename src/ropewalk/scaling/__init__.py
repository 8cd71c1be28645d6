"""The scaling methods, one file each, and the registry that finds them by name.

Every module of this folder is imported, and every concrete `Scaling` in it is registered.
"""

from __future__ import annotations

import importlib
import inspect
import json
import pkgutil
from collections.abc import Mapping
from dataclasses import MISSING, fields
from difflib import get_close_matches
from typing import Any

from ropewalk.errors import InputError
from ropewalk.scaling.base import Scaling

for _module in pkgutil.iter_modules(__path__):
    importlib.import_module(f"{__name__}.{_module.name}")


def _concrete(cls: Any) -> list[type[Scaling]]:
    below = [found for subclass in cls.__subclasses__() for found in _concrete(subclass)]
    return below if inspect.isabstract(cls) else [cls, *below]


REGISTRY: dict[str, type[Scaling]] = {cls.name: cls for cls in sorted(_concrete(Scaling), key=lambda c: c.name)}
__all__ = ["REGISTRY", "Scaling", "build", "find", "from_rope_dict", "parse"]

_BY_NAME = {name: cls for cls in REGISTRY.values() for name in (cls.name, *cls.aliases)}

# What transformers calls an option, where it differs from the field of ours.
_TRANSFORMERS_NAMES = {"original_max_position_embeddings": "original_length", "partial_rotary_factor": "p"}
# What a rope dict of transformers holds about the embedding and not about its scaling.
_OF_THE_ROPE = {"rope_type", "type", "rope_theta", "partial_rotary_factor", "mrope_section", "mrope_interleaved"}


def parse(spec: str | Mapping[str, Any] | Scaling) -> Scaling:
    """Read a scaling from `name:option=value,...`, a dict, or the JSON of one.

    A dict is either ours (`{"name": "yarn", "factor": 4}`) or of transformers (`{"rope_type": "yarn", ...}`,
    `type` for version 4). Raises InputError naming the option, what was found and what is allowed.
    """
    if isinstance(spec, Scaling):
        return spec
    if isinstance(spec, str) and spec.lstrip().startswith("{"):
        try:
            spec = json.loads(spec)
        except (ValueError, RecursionError) as error:  # broken JSON, a number of 5,000 digits, endless brackets
            raise InputError("scaling", spec, f"valid JSON ({error})") from None
    if isinstance(spec, str):
        name, _, options = spec.strip().partition(":")
        return build(name, _read_options(name, options))
    if not isinstance(spec, Mapping):
        raise InputError("scaling", spec, "a spec such as yarn:factor=4, a dict, or its JSON")
    if not {"name", "rope_type", "type"} & set(spec):
        raise InputError("scaling", spec, "a dict with a name (ours) or a rope_type (of transformers)")
    if "name" in spec:
        return build(spec["name"], {key: value for key, value in spec.items() if key != "name"})
    return from_rope_dict(spec, strict=True)


def build(name: object, options: Mapping[str, Any]) -> Scaling:
    """The scaling of that registry name with those options. Raises InputError as `parse` does."""
    cls = find(name)
    allowed = [f.name for f in fields(cls)]
    for option in options:
        if option not in allowed:
            raise InputError(f"{cls.name}: option", option, ", ".join(allowed))
    for f in fields(cls):
        if f.default is MISSING and f.name not in options:
            raise InputError(f"{cls.name}: {f.name}", None, f"a value, as in {cls.name}:{f.name}=...")
    return cls(**options)


def find(name: object) -> type[Scaling]:
    """The method of that name or alias, in either case, with `-` or `_`. Raises InputError for an unknown one."""
    key = str(name).strip().lower().replace("_", "-")
    if key not in _BY_NAME:
        near = get_close_matches(key, _BY_NAME, n=1)
        raise InputError("scaling", name, ", ".join(REGISTRY) + (f" (nearest: {near[0]})" if near else ""))
    return _BY_NAME[key]


def from_rope_dict(rope_dict: Mapping[str, Any], *, strict: bool) -> Scaling:
    """The scaling that a `rope_parameters` or `rope_scaling` dict of transformers describes.

    `strict` raises InputError for a key that means nothing here; otherwise such keys, which models keep for
    themselves, are passed over.
    """
    cls = find(rope_dict.get("rope_type") or rope_dict.get("type") or "none")
    known = {f.name for f in fields(cls)}
    options: dict[str, Any] = {}
    for key, value in rope_dict.items():
        option = _TRANSFORMERS_NAMES.get(key, key)
        if option in known and value is not None:
            options[option] = value
        elif strict and key not in _OF_THE_ROPE and value is not None and option != "original_length":
            raise InputError(f"{cls.name}: key", key, ", ".join(sorted(known)))
    return build(cls.name, options)


def _read_options(name: str, text: str) -> dict[str, Any]:
    options: dict[str, Any] = {}
    for part in _split(text):
        key, equals, value = part.partition("=")
        if not equals or not key.strip():
            raise InputError(f"{name}: option", part, "option=value")
        if key.strip() in options:
            raise InputError(f"{name}: option", key.strip(), "each option once")
        try:
            options[key.strip()] = json.loads(value)
        except (ValueError, RecursionError):
            options[key.strip()] = None if value.strip().lower() == "none" else value.strip()
    return options


def _split(text: str) -> list[str]:
    """`text` at the commas that stand in no list."""
    parts, depth = [""], 0
    for character in text:
        depth += {"[": 1, "]": -1}.get(character, 0)
        if character == "," and depth == 0:
            parts.append("")
        else:
            parts[-1] += character
    return [part for part in parts if part.strip()]
