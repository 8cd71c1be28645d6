"""Checks that several engines make when they load a configuration: a configuration that fails is refused."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ropewalk.config import LayerRope, ModelConfig
from ropewalk.config.architectures import (
    CONFIG_REJECTS_SCALING_MODEL_TYPES,
    LONGROPE_ONLY_MODEL_TYPES,
    SHORT_LONG_MSCALE_MODEL_TYPES,
    UNSET_HEAD_DIM_MODEL_TYPES,
)
from ropewalk.config.normalize import get_rope_type
from ropewalk.errors import InputError
from ropewalk.serving.engines.base import Config

_TRANSFORMERS4_LONGROPE_KEYS = {"type", "short_factor", "long_factor"}


def check_loads_in_transformers(version: int, text: Config) -> None:
    """Raise InputError if the configuration class of the architecture in transformers refuses a config.json.

    Engines that load config.json through these classes never see such a file. Which architectures refuse what is listed
    in config/architectures.py.

    Args:
        version: major version of transformers, 4 or 5.
        text: the text part of the config.json.
    """
    model_type = text.get("model_type")
    field = "rope_scaling" if version == 4 else "rope_parameters"
    why = f", which the class of {model_type} requires"
    for rope_dict in _validated_rope_dicts(text, version):
        rope_type = get_rope_type(rope_dict)
        if model_type in LONGROPE_ONLY_MODEL_TYPES and version == 4:
            if set(rope_dict) != _TRANSFORMERS4_LONGROPE_KEYS or rope_type not in ("longrope", "su", "yarn"):
                keys = ", ".join(map(str, rope_dict))
                raise InputError(field, keys, f"only type (longrope), short_factor and long_factor{why}")
        elif model_type in LONGROPE_ONLY_MODEL_TYPES and rope_type not in ("default", "longrope", "su"):
            raise InputError(field, rope_type, f"longrope or default{why}")
        if model_type in SHORT_LONG_MSCALE_MODEL_TYPES and (version == 4 or rope_type != "default"):
            for key in ("short_mscale", "long_mscale"):
                if not isinstance(rope_dict.get(key), int | float):
                    raise InputError(f"{field}: {key}", rope_dict.get(key), f"a number{why}")
        if model_type in CONFIG_REJECTS_SCALING_MODEL_TYPES and rope_type != "default":
            raise InputError(field, rope_type, f"default{why}")
        if version == 5 and rope_type == "longrope":
            if model_type in UNSET_HEAD_DIM_MODEL_TYPES and text.get("head_dim") is None:
                raise InputError("head_dim", None, f"a number together with longrope{why}")
            if text.get("per_layer_config"):
                raise InputError(field, rope_type, f"another type, since head sizes differ between layers{why}")


def check_served_length(
    model_config: ModelConfig, length: int, *, served_factor: float = 1.0, default_length: int = 0
) -> int:
    """Return the longest text that an engine serves, in tokens: the declared length times a factor.

    Args:
        model_config: its `max_length` is the declared length, max_position_embeddings.
        length: tokens to serve.
        served_factor: what the engine multiplies the declared length by.
        default_length: what the engine replaces a missing declared length by.

    Raises InputError if that is less than `length`.
    """
    max_length = int((model_config.max_length or default_length) * served_factor)
    if length > max_length:
        needed = f"at least {length / served_factor:,.0f}, to serve {length:,} tokens"
        raise InputError("max_position_embeddings", model_config.max_length, needed)
    return max_length


def check_vllm_rope_type(rope_type: str, layer: LayerRope) -> None:
    """Raise InputError if the rotary classes of vLLM, which SGLang copied, do not support the type for this layer."""
    if layer.rope_dict.get("mrope_section") and rope_type not in ("default", "mrope", "yarn"):
        raise InputError("rope_type", rope_type, "default or yarn, because the other types ignore mrope_section")
    if rope_type == "longrope" and layer.rope.layout == "interleaved":
        raise InputError("rope_type", rope_type, "another type, because longrope does not support interleaved pairs")


def _validated_rope_dicts(text: Config, version: int) -> list[Mapping[str, Any]]:
    """Return the rope dicts that the class validates: one, or one for each layer type. It skips what is not a dict."""
    rope_dict = text.get("rope_scaling")
    if not rope_dict and version == 5:
        rope_dict = text.get("rope_parameters")
    if not rope_dict or not isinstance(rope_dict, Mapping):
        return []
    by_layer_type = [value for value in rope_dict.values() if isinstance(value, Mapping)]
    return by_layer_type or [rope_dict]
