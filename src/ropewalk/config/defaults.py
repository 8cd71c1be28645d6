"""Fill fields that a config.json omits with the defaults of its architecture's class in transformers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ropewalk.config.class_defaults import find_class_defaults, find_text_type
from ropewalk.config.fields import compute_head_dim, get_count, rename_fields
from ropewalk.config.installed_class import fill_from_installed_class
from ropewalk.config.normalize import fields_of_class, find_text_config_key
from ropewalk.errors import InputError


def fill_defaults_if_incomplete(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the configuration with all defaults of its architecture if it omits the size of a head or its length.

    Gemma 3, for example, is published without heads, base and length. Engines that read config.json themselves then
    find every field. A complete configuration is returned as it is, and so is one with invalid values or of an unknown
    architecture. Rope fields stay as they are.
    """
    return _fill_part(config, str(config.get("model_type") or ""))


def _fill_part(part: Mapping[str, Any], model_type: str) -> Mapping[str, Any]:
    """Fill the text part that is nested in `part`, or `part` itself if it is the text part."""
    key = find_text_config_key(part)
    if key is not None:
        nested = _fill_part(part[key], str(part[key].get("model_type") or find_text_type(model_type)))
        return part if nested is part[key] else {**part, key: nested}
    model_type = find_text_type(model_type)
    renamed = rename_fields(part)
    try:
        is_complete = bool(compute_head_dim(renamed) and get_count(renamed, "max_position_embeddings"))
    except InputError:
        return part
    if is_complete:
        return part
    if find_class_defaults(model_type) is None:
        return fill_from_installed_class(part)
    omitted = {name: value for name, value in fields_of_class(model_type).items() if name not in renamed}
    return {**omitted, "model_type": model_type, **part}
