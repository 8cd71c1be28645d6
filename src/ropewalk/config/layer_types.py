"""Find the type of each layer of a model, such as "full_attention" or "sliding_attention"."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ropewalk.config import architectures
from ropewalk.errors import InputError


def is_local(layer_type: str) -> bool:
    """Return whether layers of this type attend only to a window, so that they never see longer distances."""
    if layer_type == "main":  # DeepSeek V4's name for sliding-window layers; its other layer types are compressed
        return True
    return any(word in layer_type for word in ("sliding", "local", "chunked"))


def check_layer_count(layers: int) -> int:
    """Return the number of layers. Raises InputError above 10,000, which would exhaust the memory."""
    if layers > 10_000:
        raise InputError("layers", layers, "at most 10,000")
    return layers


def resolve_layer_types(config: Mapping[str, Any], layers: int, has_window: bool) -> tuple[str, ...]:
    """Return the type of each layer, from `layer_types` or from `sliding_window_pattern`."""
    layer_types = config.get("layer_types")
    if not layer_types:
        default_pattern = architectures.DEFAULT_SLIDING_WINDOW_PATTERN.get(str(config.get("model_type")))
        pattern = config.get("sliding_window_pattern", default_pattern)
        if not isinstance(pattern, int) or pattern < 1:
            pattern = layers + 1  # no layer attends to the whole text
        layer_types = [
            "sliding_attention" if has_window and (index + 1) % pattern else "full_attention" for index in range(layers)
        ]
    if not isinstance(layer_types, list | tuple) or not all(isinstance(layer_type, str) for layer_type in layer_types):
        raise InputError("layer_types", layer_types, "a list of names, one for each layer")
    return tuple(layer_types)
