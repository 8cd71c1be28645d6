"""Fill fields that a config.json omits with the defaults of its architecture's class in transformers, if installed."""

from __future__ import annotations

import copy
import importlib.util
from collections.abc import Mapping
from typing import Any

from ropewalk.config.architectures import DEFAULT_ROPE_THETA
from ropewalk.config.layer_types import check_layer_count, is_local
from ropewalk.config.transformers import find_text_config_key, from_dict, get_rope_theta, get_text_config_dict
from ropewalk.errors import IncompleteConfigError, InputError


def fill_defaults_if_incomplete(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the configuration with all defaults of its architecture if it omits a field that positions depend on.

    These fields are the size of a head, and the base if `DEFAULT_ROPE_THETA` does not contain it. A complete
    configuration is returned as it is, and so is one with invalid values.
    """
    try:
        model_config = from_dict(config)
    except IncompleteConfigError:
        return fill_all_defaults(config)
    except InputError:
        return config
    text_config = get_text_config_dict(config)
    has_base = any(get_rope_theta(text_config, layer.rope_dict) for layer in model_config.ropes.values())
    return config if has_base or model_config.model_type in DEFAULT_ROPE_THETA else fill_all_defaults(config)


def fill_all_defaults(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the configuration with the default of every field that it omits.

    Gemma 3, for example, is published without heads, base and length. Rope fields keep the format of their version of
    transformers. Without transformers, or for an unknown architecture, the configuration is returned as it is.
    """
    return _fill_part(config, config) if importlib.util.find_spec("transformers") else config


def _fill_part(part: Mapping[str, Any], whole: Mapping[str, Any]) -> Mapping[str, Any]:
    """Fill the text part that is nested in `part`, or `part` itself if it is the text part."""
    key = find_text_config_key(part)
    if key is not None:
        return {**part, key: _fill_part(part[key], whole)}
    defaults = _class_defaults(part if part.get("model_type") else whole)
    if defaults is None:
        return part
    rope_parameters = defaults.pop("rope_parameters", None) or {}
    set_fields = {name: value for name, value in part.items() if value is not None}
    if not part.get("rope_scaling"):
        return {**defaults, **set_fields, "rope_parameters": rope_parameters}
    # transformers 4 stores the bases beside rope_scaling.
    nested = {layer_type: value for layer_type, value in rope_parameters.items() if isinstance(value, Mapping)}
    bases = {}
    for layer_type, rope_dict in (nested or {"": rope_parameters}).items():
        bases["rope_local_base_freq" if is_local(layer_type) else "rope_theta"] = rope_dict.get("rope_theta")
    return {**defaults, **bases, **set_fields}


def _class_defaults(config: Mapping[str, Any]) -> dict[str, Any] | None:
    """Return the text part after parsing by the architecture's class in transformers; None if the class refuses it."""
    from transformers import AutoConfig

    # Labels are not needed, and a corrupt num_labels would allocate a huge dict.
    label_fields = ("num_labels", "id2label", "label2id")
    arguments = copy.deepcopy({name: value for name, value in config.items() if name not in label_fields})
    try:
        check_layer_count(arguments.get("num_hidden_layers") or 0)
        parsed = AutoConfig.for_model(**arguments)
        text_config = parsed.get_text_config(decoder=True)
        fields: dict[str, Any] = text_config.to_dict()
    except Exception:  # the classes raise errors of any type for invalid values
        return None
    # A class may nest its text part under a key that find_text_config_key does not know; nothing would read the result.
    return fields if text_config is parsed or find_text_config_key(config) else None
