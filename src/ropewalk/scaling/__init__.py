"""The scaling methods, one file each, and the registry that finds them by name.

Every module of this folder is imported, and every concrete `Scaling` in it is registered.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import fields
from typing import Any

from ropewalk import spec as specs
from ropewalk.errors import InputError, UnknownNameError
from ropewalk.registry import find_by_name, registered
from ropewalk.scaling.base import Scaling

REGISTRY: dict[str, type[Scaling]] = registered(__name__, __path__, Scaling)  # type: ignore[type-abstract]
__all__ = ["REGISTRY", "Scaling", "find_scaling", "from_rope_dict", "parse"]

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
        name, options = specs.read_spec(spec)
        return specs.build(find_scaling(name), options)
    if not isinstance(spec, Mapping):
        raise InputError("scaling", spec, "a spec such as yarn:factor=4, a dict, or its JSON")
    if not {"name", "rope_type", "type"} & set(spec):
        raise InputError("scaling", spec, "a dict with a name (ours) or a rope_type (of transformers)")
    if "name" in spec:
        return specs.build(find_scaling(spec["name"]), {key: value for key, value in spec.items() if key != "name"})
    return from_rope_dict(spec, strict=True)


def find_scaling(name: object) -> type[Scaling]:
    """The method of that name or alias, in either case, with `-` or `_`. Raises InputError for an unknown one."""
    return find_by_name("scaling", name, _BY_NAME, REGISTRY)


def from_rope_dict(rope_dict: Mapping[str, Any], *, strict: bool) -> Scaling:
    """The scaling that a `rope_parameters` or `rope_scaling` dict of transformers describes.

    `strict` raises InputError for a key that means nothing here; otherwise such keys, which models keep for
    themselves, are passed over.
    """
    cls = find_scaling(rope_dict.get("rope_type") or rope_dict.get("type") or "none")
    known = {f.name for f in fields(cls)}
    options: dict[str, Any] = {}
    for key, value in rope_dict.items():
        option = _TRANSFORMERS_NAMES.get(key, key)
        if option in known and value is not None:
            options[option] = value
        elif strict and key not in _OF_THE_ROPE and value is not None and option != "original_length":
            raise UnknownNameError(f"{cls.name}: key", key, sorted(known))
    return specs.build(cls, options)
