"""Configurations of models, in and out: transformers 4 and 5, and GGUF.

    model_config = read("Qwen/Qwen3-8B")
    model_config.main_layer.rope, model_config.main_layer.scaling

`read` parses a configuration into a `ModelConfig`: for each layer type, its unscaled `Rope` and the scaling that the
model already has, and the sizes of its KV cache. `build_rope_parameters` builds the configuration for another scaling.
"""

from __future__ import annotations

from ropewalk.config.attention_shape import AttentionShape, LayerShape, has_kv_cache
from ropewalk.config.defaults import fill_defaults_if_incomplete
from ropewalk.config.layer_types import is_local
from ropewalk.config.model_config import (
    ALL_LAYERS,
    LayerRope,
    ModelConfig,
    compute_layer_frequencies,
    compute_per_layer_frequencies,
)
from ropewalk.config.normalize import find_text_config_key, get_text_config_dict
from ropewalk.config.rope_parameters import (
    PER_LAYER_FIELD,
    SCALING_KEYS,
    build_rope_parameters,
    compute_max_position_embeddings,
)
from ropewalk.config.sources import (
    fetch_hub_config,
    get_text_config,
    locate,
    read,
    read_json_object,
    unloadable_model_error,
)
from ropewalk.config.transformers import from_dict

__all__ = [
    "ALL_LAYERS", "PER_LAYER_FIELD", "SCALING_KEYS", "AttentionShape", "LayerRope", "LayerShape", "ModelConfig",
    "build_rope_parameters", "compute_layer_frequencies", "compute_max_position_embeddings",
    "compute_per_layer_frequencies", "fetch_hub_config", "fill_defaults_if_incomplete", "find_text_config_key",
    "from_dict", "get_text_config", "get_text_config_dict", "has_kv_cache", "is_local", "locate", "read",
    "read_json_object", "unloadable_model_error",
]  # fmt: skip
