"""Parse configurations of transformers, version 4 and 5, from plain dicts (transformers itself is not needed).

Version 5 stores the rope dict of the model in `rope_parameters`, possibly nested by layer type. Version 4 stores it in
`rope_scaling`, with `rope_theta` beside it. Both are accepted from the same function.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ropewalk.config import architectures
from ropewalk.config.attention_shape import parse_attention_shape
from ropewalk.config.fields import compute_head_dim, get_count, get_first
from ropewalk.config.layer_types import is_local
from ropewalk.config.model_config import ALL_LAYERS, LayerRope, ModelConfig
from ropewalk.errors import IncompleteConfigError, InputError, check_number
from ropewalk.rope import Rope
from ropewalk.scaling import from_rope_dict
from ropewalk.scaling.linear import Linear

# The different names that architectures use for the same field.
_LENGTH_FIELDS = ("max_position_embeddings", "n_positions", "max_seq_len", "model_max_length", "seq_length")
_ORIGINAL_LENGTH_FIELD = "original_max_position_embeddings"
_ROPE_THETA_FIELDS = ("rope_theta", "rotary_emb_base", "rope_base", "global_rope_theta")
# Keys of multimodal configurations under which the configuration of the text decoder is nested.
_TEXT_CONFIG_KEYS = ("text_config", "llm_config", "language_config", "thinker_config")


def from_dict(config: Mapping[str, Any]) -> ModelConfig:
    """Parse the dict of a transformers configuration, version 4 or 5 (its text part, for a multimodal one).

    Raises IncompleteConfigError if it has no rope fields or omits the size of a head, and InputError for values that
    are invalid or contradict each other.
    """
    config = get_text_config_dict(config)
    model_type = str(config.get("model_type", ""))
    rope_dict = config.get("rope_scaling") or config.get("rope_parameters") or {}  # the precedence of transformers 5
    if not isinstance(rope_dict, Mapping):
        raise InputError("rope_parameters", rope_dict, "a dict")
    if not (rope_dict or get_rope_theta(config, {}) or model_type in architectures.DEFAULT_ROPE_THETA):
        expected = "one with rope fields (rope_theta, rope_parameters)"
        raise IncompleteConfigError("model", model_type or "a configuration", expected)
    max_length = get_count(config, *_LENGTH_FIELDS)
    ropes = {}
    for layer_type, layer_rope_dict in _split_by_layer_type(config, rope_dict).items():
        layer_config = _override_for_layer_type(config, layer_type)
        ropes[layer_type] = _parse_layer(layer_config, layer_rope_dict, model_type, max_length)
    return ModelConfig(model_type, ropes, max_length, parse_attention_shape(config))


def find_text_config_key(config: Mapping[str, Any]) -> str | None:
    """Return the key under which a multimodal configuration nests its text part; None for a plain configuration.

    The nested part may be multimodal itself.
    """
    return next((key for key in _TEXT_CONFIG_KEYS if isinstance(config.get(key), Mapping)), None)


def get_text_config_dict(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the part of a configuration for the text decoder, which is the whole of a plain configuration."""
    key = find_text_config_key(config)
    return config if key is None else get_text_config_dict(config[key])


def get_rope_theta(config: Mapping[str, Any], rope_dict: Mapping[str, Any]) -> Any:
    """Return the base from a rope dict or from the fields beside it; None if the file leaves it to the architecture."""
    return rope_dict.get("rope_theta") or get_first(config, *_ROPE_THETA_FIELDS)


def get_rope_type(rope_dict: Mapping[str, Any]) -> str:
    """Return the type of a rope dict, which version 4 stores under `type`."""
    return str(rope_dict.get("rope_type") or rope_dict.get("type") or "default")


def _split_by_layer_type(config: Mapping[str, Any], rope_dict: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
    """Return the rope dict of each layer type.

    Version 5 nests them. In version 4, Gemma 3 and ModernBERT have a second base for their sliding-window layers.
    """
    nested = {layer_type: value for layer_type, value in rope_dict.items() if isinstance(value, Mapping)}
    if nested:
        return nested
    model_type = str(config.get("model_type"))
    local_base = get_first(config, "rope_local_base_freq", "local_rope_theta")
    local_base = local_base or architectures.DEFAULT_LOCAL_ROPE_THETA.get(model_type)
    if model_type == "olmo3":  # one base, but its sliding-window layers are never scaled
        local_base = get_rope_theta(config, rope_dict) or architectures.DEFAULT_ROPE_THETA[model_type]
    if local_base is not None:
        return {"full_attention": rope_dict, "sliding_attention": {"rope_theta": local_base}}
    return {ALL_LAYERS: rope_dict}


def _override_for_layer_type(config: Mapping[str, Any], layer_type: str) -> Mapping[str, Any]:
    """Return the configuration with the fields that differ for one layer type.

    The layers of Gemma 4 that attend to the whole text have larger heads than its sliding-window layers.
    """
    per_layer_config, layer_types = config.get("per_layer_config"), config.get("layer_types")
    if isinstance(per_layer_config, Mapping) and isinstance(layer_types, list):
        for index, overrides in per_layer_config.items():
            if not str(index).isdecimal() or not isinstance(overrides, Mapping):
                continue
            if layer_types[int(index) :][:1] == [layer_type]:
                return {**config, **overrides}
    if config.get("global_head_dim") is not None and not is_local(layer_type):
        return {**config, "head_dim": config["global_head_dim"]}
    return config


def _parse_layer(
    config: Mapping[str, Any], rope_dict: Mapping[str, Any], model_type: str, max_length: int | None
) -> LayerRope:
    """Parse the rope dict of one layer type."""
    rope_type = get_rope_type(rope_dict)
    is_proportional = rope_type == "proportional"
    options = dict(rope_dict)
    stated_length = get_count(config, _ORIGINAL_LENGTH_FIELD) or get_count(options, _ORIGINAL_LENGTH_FIELD)
    options.pop(_ORIGINAL_LENGTH_FIELD, None)  # it is stored in the Rope
    # The dynamic type of transformers ignores original_max_position_embeddings.
    original_length = max_length if rope_type == "dynamic" else stated_length or max_length
    if options.get("factor") is None and rope_type in ("yarn", "longrope", "su") and original_length and max_length:
        options["factor"] = max_length / original_length
    if is_proportional and options.get("partial_rotary_factor") is None:
        options["partial_rotary_factor"] = get_first(config, "partial_rotary_factor") or 1.0
    scaling = from_rope_dict(options, strict=False)
    if isinstance(scaling, Linear) and model_type.startswith("gemma3") and max_length and stated_length is None:
        original_length = round(max_length / scaling.factor)  # Gemma 3 declares the length after scaling
    is_interleaved = config.get("rope_interleave", model_type in architectures.INTERLEAVED_MODEL_TYPES)
    rope = Rope(
        dim=_compute_rotary_dim(config, options, model_type, is_proportional),
        base=get_rope_theta(config, options) or architectures.DEFAULT_ROPE_THETA.get(model_type, 10_000.0),
        original_length=original_length,
        layout="interleaved" if is_interleaved else "half",
    )
    return LayerRope(rope, scaling, rope_dict)


def _compute_rotary_dim(
    config: Mapping[str, Any], options: Mapping[str, Any], model_type: str, is_proportional: bool
) -> int:
    """Return the number of rotary dimensions of a head.

    With the type `proportional`, partial_rotary_factor is an option of the scaling, and the whole head is rotary.
    """
    fields = ("qk_rope_head_dim",) if is_proportional else ("qk_rope_head_dim", "rotary_dim")
    rotary_dim = get_count(config, *fields)
    if rotary_dim is not None:
        return rotary_dim
    head_dim = compute_head_dim(config)
    if head_dim is None:
        raise IncompleteConfigError("head_dim", None, "head_dim, or hidden_size and num_attention_heads")
    partial = None if is_proportional else options.get("partial_rotary_factor")
    partial = partial or get_first(config, "partial_rotary_factor", "rotary_pct")
    if partial is None:
        partial = architectures.DEFAULT_PARTIAL_ROTARY_FACTOR.get(model_type, 1.0)
    if check_number("partial_rotary_factor", partial, minimum=0, exclusive=True) > 1:
        raise InputError("partial_rotary_factor", partial, "a number above 0, at most 1")
    return head_dim if is_proportional else int(head_dim * partial)
