"""The fields of a transformers configuration that apply a scaling to all layers that attend to the whole text.

They are proven by reading: put into the configuration, they must give the frequencies of the scaling.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import numpy as np

from ropewalk.config.architectures import (
    CONFIG_REJECTS_SCALING_MODEL_TYPES,
    LONGROPE_ONLY_MODEL_TYPES,
    MODULE_REJECTS_SCALING_MODEL_TYPES,
    SHORT_LONG_MSCALE_MODEL_TYPES,
)
from ropewalk.config.layer_types import is_local
from ropewalk.config.model_config import ALL_LAYERS, LayerRope, ModelConfig, compute_layer_frequencies
from ropewalk.config.normalize import get_text_config_dict
from ropewalk.config.rope_parameters import build_rope_parameters
from ropewalk.config.transformers import from_dict
from ropewalk.frequencies import Frequencies
from ropewalk.scaling import from_rope_dict
from ropewalk.scaling.base import Scaling
from ropewalk.scaling.longrope import LongRoPE

_FLOAT32_TOLERANCE = 2e-7  # relative; engines store their tables, and GGUF its tensors, in float32
_STILL_INV_FREQ = 1e-14  # rad/token; a slower pair turns by less than the rounding of float32 in a million tokens


def expected_scalings(model_config: ModelConfig, scaling: Scaling) -> dict[str, Scaling]:
    """Return the scaling of each layer type after `scaling` is applied to the layers that attend to the whole text."""
    scaled_types = [layer_type for layer_type in model_config.ropes if not is_local(layer_type)]
    scaled_types = scaled_types or list(model_config.ropes)
    return {
        layer_type: scaling if layer_type in scaled_types else layer.scaling
        for layer_type, layer in model_config.ropes.items()
    }


def frequencies_match(left: Frequencies, right: Frequencies) -> bool:
    """Return whether two sets of frequencies are equal up to the rounding of float32."""
    left_inv_freq, right_inv_freq = (
        np.where(each.inv_freq < _STILL_INV_FREQ, 0.0, each.inv_freq) for each in (left, right)
    )
    return (
        left_inv_freq.shape == right_inv_freq.shape
        and np.allclose(left_inv_freq, right_inv_freq, rtol=_FLOAT32_TOLERANCE, atol=0)
        and abs(left.attention_factor / right.attention_factor - 1) < _FLOAT32_TOLERANCE
        and abs(left.softmax_factor / right.softmax_factor - 1) < _FLOAT32_TOLERANCE
    )


def has_scaling(
    ropes: Mapping[str, LayerRope], model_config: ModelConfig, scaling: Scaling, length: int | None
) -> bool:
    """Return whether embeddings have the frequencies of a model under a scaling, on every layer type.

    Args:
        ropes: the embeddings to compare, by layer type.
        model_config: the model.
        scaling: the scaling of its layers that attend to the whole text.
        length: tokens of the text; by default the original length.
    """
    return ropes.keys() == model_config.ropes.keys() and all(
        frequencies_match(
            compute_layer_frequencies(ropes[layer_type].scaling, ropes[layer_type], length),
            compute_layer_frequencies(layer_scaling, model_config.ropes[layer_type], length),
        )
        for layer_type, layer_scaling in expected_scalings(model_config, scaling).items()
    )


def build_scaled_rope_parameters(model_config: ModelConfig, scaling: Scaling) -> dict[str, Any] | None:
    """Return the `rope_parameters` with which transformers applies a scaling, or None if it cannot.

    The dict is complete, nested by layer type if these differ: it has a base and a type everywhere.
    """
    if model_config.model_type in CONFIG_REJECTS_SCALING_MODEL_TYPES | MODULE_REJECTS_SCALING_MODEL_TYPES:
        return None
    needs_lists = model_config.model_type in LONGROPE_ONLY_MODEL_TYPES | SHORT_LONG_MSCALE_MODEL_TYPES
    rope_dicts = {}
    for layer_type, layer_scaling in expected_scalings(model_config, scaling).items():
        layer, lists = model_config.ropes[layer_type], None
        if needs_lists and not isinstance(layer_scaling, LongRoPE):
            lists = Scaling.to_rope_parameters(layer_scaling, layer.rope)  # the same frequencies as longrope
        expressible = layer_scaling if lists is None else from_rope_dict(lists, strict=True)
        rope_dict = build_rope_parameters(expressible, layer.rope, layer.rope_dict)
        if rope_dict and model_config.model_type in SHORT_LONG_MSCALE_MODEL_TYPES:
            rope_dict |= dict.fromkeys(("short_mscale", "long_mscale"), rope_dict.get("attention_factor"))
        rope_dicts[layer_type] = rope_dict
    return None if None in rope_dicts.values() else rope_dicts.get(ALL_LAYERS, rope_dicts)


def gives_scaling(
    config: Mapping[str, Any],
    model_config: ModelConfig,
    scaling: Scaling,
    rope_parameters: Mapping[str, Any] | None,
    max_position_embeddings: int,
) -> bool:
    """Return whether a configuration with these fields is read as the model under the scaling, on every layer type.

    Args:
        config: the configuration of the model.
        model_config: the same configuration, parsed.
        scaling: the scaling of the layers that attend to the whole text.
        rope_parameters, max_position_embeddings: the fields to put into its text part.
    """
    if rope_parameters is None:
        return False
    changed = copy.deepcopy(dict(config))
    text: Any = get_text_config_dict(changed)
    text.pop("rope_scaling", None)  # transformers prefers it to rope_parameters
    text.update(rope_parameters=copy.deepcopy(rope_parameters), max_position_embeddings=max_position_embeddings)
    return has_scaling(from_dict(changed).ropes, model_config, scaling, None)
