"""Read a configuration through its architecture's class in the installed transformers.

Only for architectures that class_defaults.json does not contain: importing transformers takes seconds.
"""

from __future__ import annotations

import copy
import importlib.util
from collections.abc import Mapping
from typing import Any

from ropewalk.config.layer_types import check_layer_count, is_local
from ropewalk.config.normalize import find_text_config_key


def fill_from_installed_class(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the configuration with the default of every field that it omits.

    Rope fields keep the format of their version of transformers. Without transformers, or for an architecture that it
    does not know, the configuration is returned as it is.
    """
    return _fill_part(config, config) if importlib.util.find_spec("transformers") else config


def _fill_part(part: Mapping[str, Any], whole: Mapping[str, Any]) -> Mapping[str, Any]:
    """Fill the text part that is nested in `part`, or `part` itself if it is the text part."""
    key = find_text_config_key(part)
    if key is not None:
        nested = _fill_part(part[key], whole)
        return part if nested is part[key] else {**part, key: nested}
    defaults = _parse_with_class(part if part.get("model_type") else whole)
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


def _parse_with_class(config: Mapping[str, Any]) -> dict[str, Any] | None:
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
