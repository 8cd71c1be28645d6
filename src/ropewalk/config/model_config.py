"""The parsed configuration of a model, whichever file format it came from."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ropewalk.config.attention_shape import AttentionShape
from ropewalk.config.layer_types import is_local
from ropewalk.frequencies import Frequencies
from ropewalk.rope import Rope
from ropewalk.scaling.base import Scaling
from ropewalk.scaling.proportional import Proportional

ALL_LAYERS = "all"  # the layer type in `ModelConfig.ropes` if all layers share one rotary embedding


@dataclass(frozen=True)
class LayerRope:
    """The rotary embedding of one layer type.

    Attributes:
        rope: the unscaled embedding.
        scaling: the scaling that the configuration applies to it.
        rope_dict: the part of the configuration that it was parsed from.
        learned_factors: what each frequency is multiplied by after the scaling, [P], which the model has learned
            (Mistral Large 4); None without. They are weights, so no configuration contains them.
    """

    rope: Rope
    scaling: Scaling
    rope_dict: Mapping[str, Any] = field(default_factory=dict, compare=False)
    learned_factors: tuple[float, ...] | None = None


@dataclass(frozen=True)
class ModelConfig:
    """Everything a configuration says about positions.

    Attributes:
        model_type: the name of the architecture.
        ropes: the rotary embedding of each layer type, or one for `ALL_LAYERS`.
        max_length: tokens that the configuration declares, scaling included.
        attention: sizes of the KV cache; None if the configuration does not contain them.
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


@functools.lru_cache(maxsize=1024)  # dynamic scaling calls it for every generated token
def compute_layer_frequencies(scaling: Scaling, layer: LayerRope, length: int | None) -> Frequencies:
    """Compute the frequencies of a scaling on one layer type.

    Pairs that the model was trained not to rotate (`Proportional`) keep the frequency 0, and learned factors apply.

    Args:
        scaling: the new scaling.
        layer: the layer type, with its own scaling.
        length: tokens of the text so far; by default the original length.
    """
    frequencies = scaling.frequencies(layer.rope, length or scaling.original_length or layer.rope.original_length)
    return _apply_training(frequencies, layer, keeps_unrotated=not isinstance(scaling, Proportional))


def compute_per_layer_frequencies(scaling: Scaling, layer: LayerRope) -> tuple[Frequencies, ...]:
    """Compute the frequencies of a scaling that `is_per_layer` on one layer type, one for each of its layers.

    Unrotated pairs and learned factors are those of `compute_layer_frequencies`.
    """
    return tuple(
        _apply_training(frequencies, layer, keeps_unrotated=True)
        for frequencies in scaling.layer_frequencies(layer.rope)
    )


def _apply_training(frequencies: Frequencies, layer: LayerRope, keeps_unrotated: bool) -> Frequencies:
    """Return frequencies times the learned factors, and 0 for the pairs that the model was trained not to rotate."""
    inv_freq = frequencies.inv_freq
    if keeps_unrotated and isinstance(layer.scaling, Proportional):
        is_rotated = layer.scaling.frequencies(layer.rope).inv_freq > 0
        inv_freq = np.where(is_rotated, inv_freq, 0.0)
    if layer.learned_factors is not None:
        inv_freq = inv_freq * np.array(layer.learned_factors)
    return frequencies if inv_freq is frequencies.inv_freq else dataclasses.replace(frequencies, inv_freq=inv_freq)
