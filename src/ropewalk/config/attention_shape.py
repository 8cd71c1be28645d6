"""The sizes of the KV cache of a model."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ropewalk.config.fields import NUM_HEADS_FIELDS, compute_head_dim, get_count, get_first
from ropewalk.config.layer_types import check_layer_count, resolve_layer_types


@dataclass(frozen=True)
class AttentionShape:
    """The sizes that determine the memory of the KV cache.

    Attributes:
        layer_types: the type of each layer, such as "full_attention".
        kv_heads, key_dim, value_dim: sizes of one layer. For latent attention (MLA) they are 1, the latent plus the
            rope dimensions, and 0.
        sliding_window: tokens that sliding-window layers keep; None if no layer has a window.
        bytes_per_number: 2 for bfloat16 and float16, 4 for float32.
    """

    layer_types: tuple[str, ...]
    kv_heads: int
    key_dim: int
    value_dim: int
    sliding_window: int | None
    bytes_per_number: int


def parse_attention_shape(config: Mapping[str, Any]) -> AttentionShape | None:
    """Return the sizes of the KV cache, or None if the configuration does not contain them."""
    layers, heads = get_count(config, "num_hidden_layers", "n_layer"), get_count(config, *NUM_HEADS_FIELDS)
    head_dim = compute_head_dim(config)
    if not (layers and heads and head_dim):
        return None
    check_layer_count(layers)
    sliding_window = get_count(config, "sliding_window") if config.get("use_sliding_window", True) else None
    bytes_per_number = 4 if str(get_first(config, "dtype", "torch_dtype")).endswith("float32") else 2
    layer_types = resolve_layer_types(config, layers, has_window=sliding_window is not None)
    latent_dim = get_count(config, "kv_lora_rank")
    if latent_dim:
        key_dim = latent_dim + (get_count(config, "qk_rope_head_dim") or 0)
        return AttentionShape(layer_types, 1, key_dim, 0, sliding_window, bytes_per_number)
    # Falcon's first architecture has a single head of keys and values for all heads of queries.
    is_multi_query = config.get("multi_query") is True and not config.get("new_decoder_architecture")
    kv_heads = 1 if is_multi_query else get_count(config, "num_key_value_heads", "num_kv_heads") or heads
    return AttentionShape(layer_types, kv_heads, head_dim, head_dim, sliding_window, bytes_per_number)
