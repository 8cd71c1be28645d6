"""Find the sizes of the KV cache in the metadata of a GGUF file, as llama.cpp allocates it in float16."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ropewalk.config import gguf_architectures
from ropewalk.config.attention_shape import AttentionShape, LayerShape, has_kv_cache
from ropewalk.config.gguf_layer_types import find_gguf_sliding_window, get_gguf_field, resolve_gguf_layer_types
from ropewalk.config.layer_types import is_local


def parse_gguf_attention_shape(fields: Mapping[str, Any]) -> AttentionShape | None:
    """Return the sizes of the KV cache, or None if the metadata does not contain them."""
    layer_types = resolve_gguf_layer_types(fields)
    if not (layer_types and _largest(get_gguf_field(fields, "attention.head_count"))):
        return None
    own_layers = len(layer_types) - int(get_gguf_field(fields, "attention.shared_kv_layers", 0))
    own_layers = gguf_architectures.LAYERS_WITH_OWN_KEYS.get(str(fields["general.architecture"]), own_layers)
    layers = [
        _parse_layer(fields, index, layer_type) if index < own_layers else LayerShape(layer_type, 0, 0, 0)
        for index, layer_type in enumerate(layer_types)
    ]
    return AttentionShape(tuple(layers), bytes_per_number=2)


def compute_gguf_head_dim(fields: Mapping[str, Any]) -> int:
    """Return the width of the model divided by its heads, or 0 if the metadata does not contain them."""
    heads = _largest(get_gguf_field(fields, "attention.head_count"))
    head_dim: int = get_gguf_field(fields, "embedding_length", 0) // heads if heads else 0
    return head_dim


def _parse_layer(fields: Mapping[str, Any], index: int, layer_type: str) -> LayerShape:
    """Return the sizes of one layer with keys of its own."""
    if not has_kv_cache(layer_type):
        return LayerShape(layer_type, 0, 0, 0)
    kv_heads = get_gguf_field(fields, "attention.head_count_kv", get_gguf_field(fields, "attention.head_count"))
    if isinstance(kv_heads, list):
        kv_heads = kv_heads[index] if index < len(kv_heads) else max(kv_heads)
    key_dim, value_dim = (
        get_gguf_field(fields, f"attention.{name}_length", compute_gguf_head_dim(fields)) for name in ("key", "value")
    )
    if is_local(layer_type):
        key_dim = get_gguf_field(fields, "attention.key_length_swa", key_dim)
        value_dim = get_gguf_field(fields, "attention.value_length_swa", value_dim)
    if get_gguf_field(fields, "attention.key_length_mla"):
        value_dim = 0  # the values of latent attention are a part of its keys
    return LayerShape(
        layer_type,
        int(kv_heads),
        int(key_dim),
        int(value_dim),
        window=find_gguf_sliding_window(fields) if is_local(layer_type) else None,
        indexer_dim=int(get_gguf_field(fields, "attention.indexer.key_length", 0)),
    )


def _largest(value: Any) -> Any:
    """Return the largest number of a list with one for each layer, or the value itself."""
    return max(value) if isinstance(value, list) else value
