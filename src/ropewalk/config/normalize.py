"""Bring the configuration of any architecture into one form, so that everything else reads one format.

    normalize(config)["rope_parameters"], normalize(config)["layer_types"]

The form is that of transformers 5: every field has the name that most classes use, `layer_types` has a name for each
layer, and `rope_parameters` is one rope dict with its base, or one for each layer type. Fields that a configuration
omits have the defaults of its architecture's class (class_defaults.py). Fields that it sets to null stay null.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ropewalk.config import architectures
from ropewalk.config.class_defaults import UNKNOWN_CLASS, ClassDefaults, find_class_defaults, find_text_type
from ropewalk.config.fields import rename_fields
from ropewalk.config.layer_types import is_local, resolve_layer_types
from ropewalk.errors import InputError, UnsupportedModelError

Config = Mapping[str, Any]
RopeDict = dict[str, Any]

# Keys of multimodal configurations under which the configuration of the text decoder is nested.
_TEXT_CONFIG_KEYS = ("text_config", "llm_config", "language_config", "thinker_config")
# Fields that become part of the rope dicts.
_ROPE_FIELDS = (
    "rope_scaling", "rope_parameters", "rope_theta", "local_rope_theta", "compress_rope_theta", "partial_rotary_factor",
)  # fmt: skip


def normalize(config: Config) -> dict[str, Any]:
    """Return the text part of a configuration of transformers 4 or 5, or of code published with a model, in one form.

    `rope_parameters` is missing if the configuration has no rope fields and its architecture is unknown.

    Raises UnsupportedModelError if the configuration turns its rotary embedding off, and InputError for fields that are
    malformed or contradict each other.
    """
    model_type, part = _find_text_part(config)
    defaults = find_class_defaults(model_type)
    ignored = architectures.IGNORED_FIELDS.get(model_type, ())
    stated = {name: value for name, value in part.items() if name not in ignored}
    fields = {**fields_of_class(model_type), **rename_fields(stated), "model_type": model_type}
    _check_rotary_switch(model_type, fields)
    fields["layer_types"] = resolve_layer_types(fields)
    rope_parameters = _normalize_rope_parameters(fields, defaults)
    for name in _ROPE_FIELDS:
        fields.pop(name, None)
    return fields if rope_parameters is None else {**fields, "rope_parameters": rope_parameters}


def fields_of_class(model_type: str) -> dict[str, Any]:
    """Return the plain fields with which a configuration of this architecture starts."""
    defaults = find_class_defaults(model_type)
    return {**(defaults.fields if defaults else {}), **architectures.HIDDEN_DEFAULTS.get(model_type, {})}


def find_text_config_key(config: Config) -> str | None:
    """Return the key under which a configuration nests that of its text decoder; None for a plain configuration.

    The nested part may be multimodal itself.
    """
    if all(isinstance(config.get(key), Mapping) for key in ("encoder", "decoder")):
        return "decoder"
    return next((key for key in _TEXT_CONFIG_KEYS if isinstance(config.get(key), Mapping)), None)


def get_text_config_dict(config: Config) -> Config:
    """Return the part of a configuration for the text decoder, which is the whole of a plain configuration."""
    key = find_text_config_key(config)
    return config if key is None else get_text_config_dict(config[key])


def get_rope_type(rope_dict: Config) -> str:
    """Return the type of a rope dict, which version 4 stores under `type`."""
    return str(rope_dict.get("rope_type") or rope_dict.get("type") or "default")


def get_rope_theta(fields: Config, rope_dict: Config) -> Any:
    """Return the base that a rope dict or a field beside it states; None if the file leaves it to the architecture."""
    return rope_dict.get("rope_theta") or rename_fields(fields).get("rope_theta")


def _find_text_part(config: Config) -> tuple[str, Config]:
    """Return the architecture of the text decoder, and its part of the configuration."""
    key, model_type = find_text_config_key(config), str(config.get("model_type") or "")
    model_type = architectures.RENAMED_TEXT_TYPES.get(model_type) or find_text_type(model_type)
    if key is None:
        return model_type, config
    nested_type, part = _find_text_part(config[key])
    return nested_type or model_type, part


def _check_rotary_switch(model_type: str, fields: Config) -> None:
    """Raise UnsupportedModelError if the architecture or a field says that there is no rotary embedding."""
    if model_type in architectures.NO_ROTARY_MODEL_TYPES:
        raise UnsupportedModelError(model_type, "it has no rotary embedding")
    name, is_on = architectures.ROTARY_SWITCHES.get(model_type, ("position_embedding_type", None))
    value = fields.get(name)
    if (is_on is None and value in architectures.OTHER_POSITION_EMBEDDINGS) or (is_on is not None and value != is_on):
        raise UnsupportedModelError(model_type, f"it has no rotary embedding ({name} is {value})")


def _normalize_rope_parameters(fields: Config, known: ClassDefaults | None) -> RopeDict | None:
    """Return the rope dict of all layers or of each layer type; None if there is nothing to build one from."""
    defaults = known or UNKNOWN_CLASS
    nested, flat = _find_stated_rope_dicts(fields, defaults)
    if not nested and not flat and fields.get("rope_theta") is None and known is None:
        return None
    if not nested:
        class_dict = defaults.rope_parameters or {}
        nested = {name: class_dict.get(name, {}) for name in _find_rope_layer_types(fields, defaults)}
        if not nested:
            return _fill(flat or class_dict, None, fields, defaults)
        if fields["model_type"] in architectures.BASES_BESIDE_MODEL_TYPES:
            nested = {name: {**value, **_values_beside(name, fields, defaults)} for name, value in nested.items()}
        if fields.get("compress_rope_theta") is not None:
            nested, flat = _split_by_compression(nested, flat, fields), {}
    scaled = fields.get("yarn_only_types") or architectures.SCALED_LOCAL_LAYER_TYPES.get(fields["model_type"])
    if scaled and not isinstance(scaled, list | tuple):
        raise InputError("yarn_only_types", scaled, "a list of layer types")
    result: RopeDict = {}
    for name, rope_dict in sorted(nested.items(), key=lambda item: is_local(item[0])):
        is_scaled = name in scaled if scaled else not is_local(name)
        options = flat if is_scaled else {}
        is_absent = rope_dict is None and not options  # layers of this type have no rotary embedding
        result[name] = None if is_absent else _fill({**(rope_dict or {}), **options}, name, fields, defaults)
    return result


def _find_stated_rope_dicts(fields: Config, defaults: ClassDefaults) -> tuple[RopeDict, RopeDict]:
    """Return the rope dicts by layer type that a configuration states, and the one for all layers.

    If it has both, the latter is the scaling of the layers that attend to the whole text.
    """
    nested: RopeDict = {}
    flat: RopeDict = {}
    for field in ("rope_scaling", "rope_parameters"):  # transformers 5 reads the former first
        rope_dict = fields.get(field) or {}
        if not isinstance(rope_dict, Mapping):
            raise InputError(field, rope_dict, "a dict")
        layer_types = {"full_attention", "sliding_attention", *fields["layer_types"]}
        by_layer_type = {
            name: value
            for name, value in rope_dict.items()
            if isinstance(value, Mapping) or (value is None and name in layer_types)
        }
        if any(by_layer_type.values()):
            nested = nested or {name: _with_rope_type(value) for name, value in by_layer_type.items()}
        elif by_layer_type or (field == "rope_parameters" and _reads_nested_dicts_only(defaults)):
            continue
        elif rope_dict and not flat:
            flat = _with_rope_type(rope_dict)
    return nested, flat


def _with_rope_type(rope_dict: Config | None) -> Any:
    """Return a rope dict with its type under the name of version 5, without fields that are null."""
    if rope_dict is None:
        return None
    stated = {name: value for name, value in rope_dict.items() if value is not None}
    return {**stated, "rope_type": get_rope_type(rope_dict)}


def _reads_nested_dicts_only(defaults: ClassDefaults) -> bool:
    """Return whether the class of an architecture like Gemma 3 takes no notice of a flat `rope_parameters`."""
    return isinstance(defaults.rope_theta, dict) and defaults.rope_parameters is None


def _split_by_compression(nested: RopeDict, flat: RopeDict, fields: Config) -> RopeDict:
    """Return the two rope dicts of DeepSeek V4, which scales only the layers with compressed keys.

    Source: configuration_deepseek_v4.py of transformers 5.
    """
    compressed = {**nested.get("compress", {}), **flat, "rope_theta": fields["compress_rope_theta"]}
    if compressed.get("rope_type") == "yarn":
        compressed.setdefault("attention_factor", 1.0)
    return {"main": nested.get("main", {}), "compress": compressed}


def _find_rope_layer_types(fields: Config, defaults: ClassDefaults) -> list[str]:
    """Return the layer types that have rope dicts of their own; [] if one is for all layers."""
    class_dict = defaults.rope_parameters or {}
    of_class = [name for name, value in class_dict.items() if value is None or isinstance(value, Mapping)]
    if of_class:
        return of_class
    if fields.get("compress_rope_theta") is not None:
        return ["main", "compress"]
    present = list(dict.fromkeys(fields["layer_types"]))
    if isinstance(defaults.rope_theta, dict):
        return [*defaults.rope_theta, *(name for name in present if name not in defaults.rope_theta)]
    if any(isinstance(fields.get(name), list) for name in ("rope_theta", "partial_rotary_factor")):
        return present
    if fields.get("local_rope_theta") is not None:
        return present if len(present) > 1 else ["full_attention", "sliding_attention"]
    return []


def _fill(rope_dict: Config, layer_type: str | None, fields: Config, defaults: ClassDefaults) -> RopeDict:
    """Return a rope dict with its type, its base and, if it is not 1, its partial rotary factor."""
    class_dict = (defaults.rope_parameters or {}).get(layer_type or "")
    class_base = class_dict.get("rope_theta") if isinstance(class_dict, Mapping) else None
    filled: RopeDict = {"rope_theta": class_base or 10_000.0, "partial_rotary_factor": 1.0}
    for name in filled:
        default = getattr(defaults, name)
        filled[name] = default.get(layer_type, filled[name]) if isinstance(default, dict) else default
    filled = {**filled, "rope_type": "default", **_values_beside(layer_type, fields, defaults), **rope_dict}
    if filled["partial_rotary_factor"] == 1.0:
        del filled["partial_rotary_factor"]
    return filled


def _values_beside(layer_type: str | None, fields: Config, defaults: ClassDefaults) -> RopeDict:
    """Return the base and the partial rotary factor of a layer type that stand beside the rope dicts."""
    names = {"rope_theta": "rope_theta", "partial_rotary_factor": "partial_rotary_factor"}
    if layer_type is not None and is_local(layer_type) and fields.get("local_rope_theta") is not None:
        names["rope_theta"] = "local_rope_theta"
    elif layer_type in defaults.fixed_bases:
        del names["rope_theta"]
    has_class_dict = layer_type is not None and bool(defaults.rope_parameters)
    if has_class_dict and fields["model_type"] not in architectures.BASES_BESIDE_MODEL_TYPES:
        del names["partial_rotary_factor"]
    values = {name: _value_of_layer_type(beside, layer_type, fields) for name, beside in names.items()}
    return {name: value for name, value in values.items() if value is not None}


def _value_of_layer_type(name: str, layer_type: str | None, fields: Config) -> Any:
    """Return a field, or the entry of a layer type if the field is a list with one value for each layer.

    Raises InputError if layers of one type have different values.
    """
    values = fields.get(name)
    if not isinstance(values, list):
        return values
    layer_types = fields["layer_types"]
    own = [value for value, other in zip(values, layer_types, strict=False) if other == layer_type]
    if not own or any(value != own[0] for value in own) or len(values) < len(layer_types):
        raise InputError(name, values, "a value for each layer, the same for all layers of a type")
    return own[0]
