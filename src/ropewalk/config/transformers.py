"""Parse configurations of transformers, version 4 and 5, from plain dicts (transformers itself is not needed).

Version 5 stores the rope dict of the model in `rope_parameters`, possibly nested by layer type. Version 4 stores it in
`rope_scaling`, with `rope_theta` beside it. normalize.py brings both, and the fields of single architectures, into one
form; this file turns that form into ropes and scalings.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ropewalk.config import architectures
from ropewalk.config.attention_shape import parse_attention_shape
from ropewalk.config.class_defaults import find_class_defaults
from ropewalk.config.fields import compute_head_dim, get_count
from ropewalk.config.installed_class import fill_from_installed_class
from ropewalk.config.layer_overrides import override_for_layer_type
from ropewalk.config.model_config import ALL_LAYERS, LayerRope, ModelConfig
from ropewalk.config.normalize import get_rope_type, normalize
from ropewalk.errors import IncompleteConfigError, InputError, UnsupportedModelError, check_number
from ropewalk.rope import Rope
from ropewalk.scaling import from_rope_dict
from ropewalk.scaling.linear import Linear

_ORIGINAL_LENGTH_FIELD = "original_max_position_embeddings"


def from_dict(config: Mapping[str, Any]) -> ModelConfig:
    """Parse the dict of a transformers configuration, version 4 or 5 (its text part, for a multimodal one).

    Fields that it omits have the defaults of its architecture's class in transformers.

    Raises IncompleteConfigError if it has no rope fields or omits the size of a head, UnsupportedModelError if it turns
    its rotary embedding off, and InputError for values that are invalid or contradict each other.
    """
    fields = normalize(config)
    try:
        return _from_normalized(fields)
    except IncompleteConfigError:
        if find_class_defaults(fields["model_type"]) is not None:
            raise
        filled = fill_from_installed_class(config)  # an architecture that is newer than the table
        if filled is config:
            raise
    return _from_normalized(normalize(filled))


def _from_normalized(fields: Mapping[str, Any]) -> ModelConfig:
    """Parse the result of `normalize`."""
    model_type, rope_parameters = fields["model_type"], fields.get("rope_parameters")
    if rope_parameters is None:
        expected = "one with rope fields (rope_theta, rope_parameters)"
        raise IncompleteConfigError("model", model_type or "a configuration", expected)
    max_length = get_count(fields, "max_position_embeddings")
    ropes = {}
    is_flat = "rope_type" in rope_parameters
    for layer_type, rope_dict in ({ALL_LAYERS: rope_parameters} if is_flat else rope_parameters).items():
        if rope_dict is not None:
            layer_fields = override_for_layer_type(fields, layer_type)
            ropes[layer_type] = _parse_layer(layer_fields, rope_dict, model_type, max_length)
    if not ropes:
        raise UnsupportedModelError(model_type, "no type of layer has a rotary embedding")
    return ModelConfig(model_type, ropes, max_length, parse_attention_shape(fields))


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
    if is_proportional:
        options.setdefault("partial_rotary_factor", 1.0)
    scaling = from_rope_dict(options, strict=False)
    if isinstance(scaling, Linear) and model_type.startswith("gemma3") and max_length and stated_length is None:
        original_length = round(max_length / scaling.factor)  # Gemma 3 declares the length after scaling
    is_interleaved = config.get("rope_interleave", model_type in architectures.INTERLEAVED_MODEL_TYPES)
    rope = Rope(
        dim=_compute_rotary_dim(config, options, model_type, is_proportional),
        base=options["rope_theta"],
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
    rotary_dim = get_count(config, "qk_rope_head_dim") or (None if is_proportional else get_count(config, "rotary_dim"))
    head_dim = rotary_dim or compute_head_dim(config)
    if head_dim is None:
        raise IncompleteConfigError("head_dim", None, "head_dim, or hidden_size and num_attention_heads")
    partial = options.get("partial_rotary_factor", 1.0)
    if check_number("partial_rotary_factor", partial, minimum=0, exclusive=True) > 1:
        raise InputError("partial_rotary_factor", partial, "a number above 0, at most 1")
    is_fraction_of_head = not rotary_dim or (
        config.get("qk_rope_head_dim") and model_type not in architectures.WHOLE_HEAD_PARTIAL_MODEL_TYPES
    )
    return int(head_dim * partial) if is_fraction_of_head and not is_proportional else head_dim
