"""The scaling methods, one file for each, and the functions that look them up and parse them.

Every concrete `Scaling` in this package is registered under its name; see `ropewalk.registry`.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import fields
from typing import Any

from ropewalk import spec as specs
from ropewalk.errors import InputError, UnknownNameError
from ropewalk.registry import discover_subclasses, find_by_name
from ropewalk.scaling.base import Scaling
from ropewalk.scaling.learned import Learned, read_scaling_file

REGISTRY: dict[str, type[Scaling]] = discover_subclasses(__name__, __path__, Scaling)  # type: ignore[type-abstract]
__all__ = [
    "BY_NAME_OR_ALIAS",
    "EMBEDDING_KEYS",
    "REGISTRY",
    "Scaling",
    "find_scaling",
    "from_rope_dict",
    "parse",
    "parse_method",
]

BY_NAME_OR_ALIAS = {name: cls for cls in REGISTRY.values() for name in (cls.name, *cls.aliases)}

# Keys of transformers' rope dicts whose names differ from the options of our classes.
_OPTION_NAMES = {"original_max_position_embeddings": "original_length", "partial_rotary_factor": "p"}
# Keys of transformers' rope dicts that describe the embedding itself and not its scaling.
EMBEDDING_KEYS = {
    "rope_type", "type", "rope_theta", "partial_rotary_factor", "mrope_section", "mrope_interleaved", "interleaved",
    "finetuned", "llama_4_scaling_beta", "max_position_embeddings", "fope_init_factor", "fope_sep_head", "num_inv_freq",
}  # fmt: skip


def parse(spec: str | Mapping[str, Any] | Scaling) -> Scaling:
    """Parse a scaling from a spec, a dict or the JSON of a dict.

    Args:
        spec: `name:option=value,...`; a dict of `Scaling.to_dict` (`{"name": "yarn", "factor": 4}`); a rope dict of
            transformers (`{"rope_type": "yarn", ...}`, or `type` in version 4); the path of a `scaling.json` that
            `ropewalk tune` wrote; or a scaling, which is returned as is.

    Raises InputError that names the wrong option, its value and the allowed values.
    """
    return spec if isinstance(spec, Scaling) else parse_method(spec, find_scaling)


def parse_method(spec: str | Mapping[str, Any], find_class: Callable[[object], type[Any]]) -> Any:
    """Parse a method as `parse` does, with the class that `find_class` returns for its name."""
    if isinstance(spec, str) and spec.lstrip().startswith("{"):
        try:
            spec = json.loads(spec)
        except (ValueError, RecursionError) as error:
            raise InputError("scaling", spec, f"valid JSON ({error})") from None
    if isinstance(spec, str) and spec.endswith(".json") and not {":", "="} & set(spec):
        content = read_scaling_file(spec)
        spec = {"name": Learned.name, "file": spec} if content.get("name") == Learned.name else content
    if isinstance(spec, str):
        return specs.parse_spec(spec, find_class)
    if not isinstance(spec, Mapping):
        raise InputError("scaling", spec, "a spec such as yarn:factor=4, a dict, or its JSON")
    if "name" in spec:
        options = {key: value for key, value in spec.items() if key != "name"}
        return specs.build_from_options(find_class(spec["name"]), options)
    if "rope_type" in spec or "type" in spec:
        return from_rope_dict(spec, strict=True)
    raise InputError("scaling", spec, "a dict with a name (ropewalk) or a rope_type (transformers)")


def find_scaling(name: object) -> type[Scaling]:
    """Return the scaling class with that name or alias, ignoring case and the difference between `-` and `_`.

    Raises UnknownNameError.
    """
    return find_by_name("scaling", name, BY_NAME_OR_ALIAS, REGISTRY)


def from_rope_dict(rope_dict: Mapping[str, Any], *, strict: bool) -> Scaling:
    """Build the scaling that a `rope_parameters` or `rope_scaling` dict of transformers describes.

    Args:
        rope_dict: the dict for one layer type. Keys whose value is None count as missing.
        strict: whether a key that is not an option of the method raises UnknownNameError. Otherwise it is ignored,
            because published models store other keys there.
    """
    cls = find_scaling(rope_dict.get("rope_type") or rope_dict.get("type") or "none")
    known = {f.name for f in fields(cls)}
    options: dict[str, Any] = {}
    for key, value in rope_dict.items():
        option = _OPTION_NAMES.get(key, key)
        if value is None:
            continue
        if option in known:
            options[option] = value
        elif strict and key not in EMBEDDING_KEYS:
            raise UnknownNameError(f"{cls.name}: key", key, sorted(known))
    return specs.build_from_options(cls, options)
