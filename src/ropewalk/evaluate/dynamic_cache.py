"""The KV cache through which evaluations read on: `DynamicCache`, if a model stores its state in one."""

from __future__ import annotations

from typing import Any

import torch
from transformers import DynamicCache

from ropewalk import config as configs
from ropewalk.compat.transformers import cache_for_call, find_output_cache
from ropewalk.models.evaluation_mode import evaluation_mode


def create_cache(model: Any) -> DynamicCache:
    """Return an empty cache for a model."""
    return DynamicCache(config=configs.get_text_config(model.config))


def continues_from_cache(model: Any) -> bool:
    """Return whether a model stores its state in a `DynamicCache`, by letting it read one token.

    MiniMax accepts only a cache of its own, and RecurrentGemma keeps its state in its layers.
    """
    cache = create_cache(model)
    with torch.inference_mode(), evaluation_mode(model):
        try:
            token_BT = torch.zeros(1, 1, dtype=torch.int64, device=model.device)
            outputs = model(input_ids=token_BT, **cache_for_call(model, cache), use_cache=True)
        except ValueError:
            return False
    return find_output_cache(outputs) is cache
