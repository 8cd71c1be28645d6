"""The options of a position method that a model's configuration decides, and the models that no method fits."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ropewalk.config import ModelConfig
from ropewalk.errors import InputError
from ropewalk.planning import compute_current_length
from ropewalk.positions import PositionMethod
from ropewalk.positions.dual_chunk import DualChunk
from ropewalk.positions.near_exact import NearExact
from ropewalk.scaling.none import NoScaling


def complete_position_method(
    method: PositionMethod, text_config: Any, model_config: ModelConfig
) -> tuple[PositionMethod, int]:
    """Return a position method with the options that a configuration gives, and the original length in tokens.

    The frequencies of the configuration count as trained. If it has a static scaling, the original length is the one
    that this scaling is for. With a `dual_chunk_attention_config` (Qwen2.5-1M), it is the one named there.

    Raises InputError if the frequencies follow the text, and if the options do not fit the original length.
    """
    scaling = model_config.main_layer.scaling
    if scaling.is_dynamic or (isinstance(method, NearExact) and scaling != NoScaling()):
        expected = f"a scaling instead: the frequencies of the model are those of its own {scaling}"
        raise InputError("scaling", str(method), expected)
    dual_chunk = getattr(text_config, "dual_chunk_attention_config", None)
    original_length = method.original_length
    if isinstance(dual_chunk, Mapping):
        original_length = original_length or dual_chunk.get("original_max_position_embeddings")
        if isinstance(method, DualChunk):
            method = method.with_defaults_of(dual_chunk)
    original_length = original_length or compute_current_length(model_config)
    method.resolve(original_length, original_length)  # raises for options that do not fit
    return method, original_length
