"""Find the type of each layer in the metadata of a GGUF file, as llama.cpp does."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ropewalk.config import gguf_architectures
from ropewalk.config.layer_types import check_layer_count


def get_gguf_field(fields: Mapping[str, Any], key: str, default: Any = None) -> Any:
    """Return the field `ARCHITECTURE.key` of a file, or the default."""
    return fields.get(f"{fields.get('general.architecture', '')}.{key}", default)


def resolve_gguf_layer_types(fields: Mapping[str, Any]) -> tuple[str, ...]:
    """Return the type of each layer, with the names that transformers uses; empty if the file does not count them.

    Layers for the prediction of several tokens, which llama.cpp counts last, are left out.
    """
    num_layers = int(get_gguf_field(fields, "block_count", 0)) - int(get_gguf_field(fields, "nextn_predict_layers", 0))
    check_layer_count(num_layers)
    return tuple(_resolve_layer_type(fields, index) for index in range(max(0, num_layers)))


def find_gguf_sliding_window(fields: Mapping[str, Any]) -> int | None:
    """Return how many tokens the layers with a window attend to, or None without such layers."""
    architecture = str(fields.get("general.architecture", ""))
    default = gguf_architectures.DEFAULT_SLIDING_WINDOW.get(architecture)
    return get_gguf_field(fields, "attention.sliding_window", default) or None


def _resolve_layer_type(fields: Mapping[str, Any], index: int) -> str:
    architecture = str(fields.get("general.architecture", ""))
    kv_heads = get_gguf_field(fields, "attention.head_count_kv")
    if isinstance(kv_heads, list) and index < len(kv_heads) and kv_heads[index] == 0:
        return "linear_attention"
    default_interval = gguf_architectures.FULL_ATTENTION_INTERVAL.get(architecture)
    interval = get_gguf_field(fields, "full_attention_interval", default_interval)
    if interval and (index + 1) % interval:
        return "linear_attention"
    if find_gguf_sliding_window(fields) is None or not _has_window(fields, architecture, index):
        return "full_attention"
    is_chunked = architecture in gguf_architectures.CHUNKED_GGUF_ARCHITECTURES
    return "chunked_attention" if is_chunked else "sliding_attention"


def _has_window(fields: Mapping[str, Any], architecture: str, index: int) -> bool:
    """Return whether the pattern of layers gives this one a window."""
    default_period = gguf_architectures.SLIDING_WINDOW_PERIOD.get(architecture)
    pattern = get_gguf_field(fields, "attention.sliding_window_pattern", default_period)
    if isinstance(pattern, list):
        return index < len(pattern) and bool(pattern[index])
    if pattern is None:  # llama.cpp does not read windows for this architecture
        return False
    full_layer = 0 if architecture in gguf_architectures.FULL_FIRST_GGUF_ARCHITECTURES else pattern - 1
    return bool(pattern == 0 or index % pattern != full_layer)
