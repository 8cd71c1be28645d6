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

# The architecture's own default in transformers 5, for files that leave the base out.
BASE_OF = {
    "apertus": 12_000_000.0,
    "bitnet": 500_000.0,
    "cohere": 500_000.0,
    "cohere2": 10_000.0,
    "cwm": 1_000_000.0,
    "ernie4_5": 500_000.0,
    "ernie4_5_moe": 500_000.0,
    "ernie4_5_vl_moe_text": 500_000.0,
    "falcon": 10_000.0,
    "flex_olmo": 500_000.0,
    "gemma": 10_000.0,
    "gemma2": 10_000.0,
    "gemma3_text": 1_000_000.0,
    "gemma3n_text": 1_000_000.0,
    "glm": 10_000.0,
    "glm4": 10_000.0,
    "gpt_neox": 10_000.0,
    "gpt_oss": 150_000.0,
    "granite": 10_000.0,
    "helium": 100_000.0,
    "hy_v3": 11_158_840.0,
    "lfm2": 1_000_000.0,
    "lfm2_moe": 1_000_000.0,
    "llama": 10_000.0,
    "llama4_text": 500_000.0,
    "longcat_flash": 10_000_000.0,
    "minimax": 1_000_000.0,
    "minimax_m2": 5_000_000.0,
    "minimax_m3_vl_text": 5_000_000.0,
    "ministral3": 1_000_000.0,
    "mistral": 10_000.0,
    "mixtral": 1_000_000.0,
    "mllama_text_model": 500_000.0,
    "olmo": 10_000.0,
    "olmo2": 10_000.0,
    "olmo3": 500_000.0,
    "paddleocr_vl_text": 500_000.0,
    "persimmon": 10_000.0,
    "phi": 10_000.0,
    "phi3": 10_000.0,
    "phimoe": 1_000_000.0,
    "qwen2": 10_000.0,
    "qwen2_5_omni_text": 1_000_000.0,
    "qwen2_5_vl_text": 1_000_000.0,
    "qwen2_moe": 10_000.0,
    "qwen2_vl_text": 1_000_000.0,
    "qwen3": 10_000.0,
    "qwen3_moe": 10_000.0,
    "qwen3_omni_moe_text": 1_000_000.0,
    "qwen3_vl_moe_text": 500_000.0,
    "qwen3_vl_text": 500_000.0,
    "smollm3": 2_000_000.0,
    "solar_open": 1_000_000.0,
    "stablelm": 10_000.0,
    "starcoder2": 10_000.0,
}
# Whose weights pair neighbouring channels.
INTERLEAVED = {
    "blt", "codegen", "cohere", "cohere2", "deepseek_v2", "deepseek_v3", "deepseek_v32", "ernie4_5", "ernie4_5_moe",
    "glm", "glm4", "gptj", "helium", "kimi_k2", "llama4",
}  # fmt: skip


@dataclass(frozen=True)
class LayerRope:
    """The rotary embedding of one layer type: unscaled, the scaling the model comes with, and its dict as written."""

    rope: Rope
    scaling: Scaling
    written: Mapping[str, Any] = field(default_factory=dict, compare=False)


@dataclass(frozen=True)
class AttentionShape:
    """What one token keeps in the KV cache.

    Attributes:
        kinds: a layer type for each layer.
        kv_heads, key_dim, value_dim: of one layer; of latent attention 1, latent plus rope part, 0.
        sliding_window: tokens that a sliding layer keeps, if any layer slides.
        bytes_per_number: 2 for bfloat16 and float16, 4 for float32.
    """

    kinds: tuple[str, ...]
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
    def main(self) -> str:
        """The layer type that sees the whole text, which is the one that a scaling is for."""
        return next((kind for kind in self.ropes if not is_local(kind)), next(iter(self.ropes)))


@functools.lru_cache(maxsize=1024)  # asked at every step of a text
def layer_frequencies(scaling: Scaling, own: LayerRope, length: int | None) -> Frequencies:
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


def check_layers(layers: int) -> int:
    """The number of layers. Raises InputError for one that only a damaged file holds: it would fill the memory."""
    if layers > 10_000:
        raise InputError("layers", layers, "at most 10,000")
    return layers
