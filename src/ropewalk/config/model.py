"""What a configuration says about positions, whichever format it came in."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ropewalk.errors import InputError
from ropewalk.frequencies import Frequencies
from ropewalk.rope import Rope
from ropewalk.scaling.base import Scaling
from ropewalk.scaling.proportional import Proportional

ALL_LAYERS = "all"


@dataclass(frozen=True)
class LayerRope:
    """The rotary embedding of one layer type: unscaled, the scaling the model comes with, and its dict as written."""

    rope: Rope
    scaling: Scaling
    rope_dict: Mapping[str, Any] = field(default_factory=dict, compare=False)


@dataclass(frozen=True)
class AttentionShape:
    """What one token keeps in the KV cache.

    Attributes:
        layer_types: a layer type for each layer.
        kv_heads, key_dim, value_dim: of one layer; of latent attention 1, latent plus rope part, 0.
        sliding_window: tokens that a sliding layer keeps, if any layer slides.
        bytes_per_number: 2 for bfloat16 and float16, 4 for float32.
    """

    layer_types: tuple[str, ...]
    kv_heads: int
    key_dim: int
    value_dim: int
    sliding_window: int | None
    bytes_per_number: int


@dataclass(frozen=True)
class ModelConfig:
    """What a configuration says about positions.

    Attributes:
        model_type: the architecture's name.
        ropes: a `LayerRope` for each layer type, or one for `"all"`.
        max_length: tokens that the configuration declares, scaling included.
        attention: its shape, None where the configuration does not tell.
    """

    model_type: str
    ropes: dict[str, LayerRope]
    max_length: int | None
    attention: AttentionShape | None

    @property
    def main_layer_type(self) -> str:
        """The layer type that attends to the whole text; a new scaling is applied to it."""
        return next((layer_type for layer_type in self.ropes if not is_local(layer_type)), next(iter(self.ropes)))

    @property
    def main_layer(self) -> LayerRope:
        """The rotary embedding of the layers that attend to the whole text."""
        return self.ropes[self.main_layer_type]


@functools.lru_cache(maxsize=1024)  # asked at every step of a text
def compute_layer_frequencies(scaling: Scaling, own: LayerRope, length: int | None) -> Frequencies:
    """The frequencies of `scaling` for such layers, by default at the original length.

    Pairs that the layers were trained to keep still stay so.
    """
    frequencies = scaling.frequencies(own.rope, length or scaling.original_length or own.rope.original_length)
    if not isinstance(own.scaling, Proportional) or isinstance(scaling, Proportional):
        return frequencies
    turns = own.scaling.frequencies(own.rope).inv_freq > 0
    return dataclasses.replace(frequencies, inv_freq=np.where(turns, frequencies.inv_freq, 0.0))


def is_local(layer_type: str) -> bool:
    """Whether such layers see only a window, so that no length of text takes them past their training."""
    if layer_type == "main":  # DeepSeek V4's word for its sliding-window layers; the others are "compress"
        return True
    return any(word in layer_type for word in ("sliding", "local", "chunked"))


def check_layer_count(layers: int) -> int:
    """The number of layers. Raises InputError for one that only a damaged file holds: it would fill the memory."""
    if layers > 10_000:
        raise InputError("layers", layers, "at most 10,000")
    return layers
