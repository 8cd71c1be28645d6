"""Find the sizes of the KV cache in the metadata of a GGUF file."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ropewalk.config.attention_shape import AttentionShape, LayerShape
from ropewalk.config.layer_types import check_layer_count


def parse_gguf_attention_shape(fields: Mapping[str, Any]) -> AttentionShape | None:
    """Return the sizes of the KV cache, or None if the metadata does not contain them."""
    heads, layers = _largest(_get(fields, "attention.head_count")), _get(fields, "block_count")
    if not (heads and layers):
        return None
    head_dim = compute_gguf_head_dim(fields)
    layer = LayerShape(
        "full_attention",
        kv_heads=int(_largest(_get(fields, "attention.head_count_kv", heads))),
        key_dim=int(_get(fields, "attention.key_length", head_dim)),
        value_dim=int(_get(fields, "attention.value_length", head_dim)),
    )
    return AttentionShape((layer,) * check_layer_count(int(layers)), bytes_per_number=2)


def compute_gguf_head_dim(fields: Mapping[str, Any]) -> int:
    """Return the width of the model divided by its heads, or 0 if the metadata does not contain them."""
    heads = _largest(_get(fields, "attention.head_count"))
    head_dim: int = _get(fields, "embedding_length", 0) // heads if heads else 0
    return head_dim


def _get(fields: Mapping[str, Any], key: str, default: Any = None) -> Any:
    """Return a field of the architecture, whose name is the prefix of the key, or the default."""
    return fields.get(f"{fields.get('general.architecture', '')}.{key}", default)


def _largest(value: Any) -> Any:
    """Return the largest number of a list with one for each layer, or the value itself."""
    return max(value) if isinstance(value, list) else value
