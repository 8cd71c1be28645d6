"""Patches of `generate` that a dynamic scaling needs.

Under the policy `request`, it reports how long the text of each request may become. Under every policy, candidates of
assisted decoding and prompt lookup are verified together only as far as they share their frequencies, so that the
answer is that of greedy decoding.
"""

from __future__ import annotations

import functools
from typing import Any

from torch import nn
from transformers import Cache, DynamicCache

from ropewalk.compat.transformers import (
    CANDIDATE_GENERATOR_METHOD,
    CONTINUOUS_BATCHING_METHOD,
    PREPARE_CACHE_METHOD,
    PREPARE_INPUTS_METHOD,
    limit_candidates,
    prepare_cache_and_report_lengths,
    prepare_inputs_with_new_cache,
)
from ropewalk.models.dynamic import FIXED_LENGTH, DecoderHooks
from ropewalk.models.key_state import get_key_state
from ropewalk.models.patching import AttributePatch, Patch
from ropewalk.scaling.policies import RequestPolicy


def generation_patches(model: nn.Module, hooks: DecoderHooks) -> list[Patch]:
    """Return the patches of the model's `generate` that its decoder hooks need; none for a static scaling."""
    if not hooks.is_dynamic or not hasattr(model, PREPARE_CACHE_METHOD):
        return []
    functions: dict[str, Any] = {
        CANDIDATE_GENERATOR_METHOD: functools.partial(limit_candidates, model, hooks.count_candidates),
        CONTINUOUS_BATCHING_METHOD: functools.partial(_refuse_continuous_batching),
    }
    if isinstance(hooks.policy, RequestPolicy):
        functions |= {
            PREPARE_CACHE_METHOD: functools.partial(prepare_cache_and_report_lengths, model, hooks.set_request_lengths),
            PREPARE_INPUTS_METHOD: functools.partial(
                prepare_inputs_with_new_cache, model, functools.partial(_continue_request, hooks)
            ),
        }
    patches: list[Patch] = []
    for name, function in functions.items():
        if hasattr(type(model), name):
            function.__wrapped__ = getattr(type(model), name)  # `generate` reads the signature
            patches.append(AttributePatch(model, name, function))
    return patches


def _continue_request(hooks: DecoderHooks, cache: Cache) -> Cache | None:
    """Return a new cache for the request of a cache that the model has dropped; None if it is of no request."""
    state = get_key_state(cache)
    if state is None or state.request_lengths is None:
        return None
    new_cache = DynamicCache(config=hooks.decoder.config.get_text_config(decoder=True))
    hooks.set_request_lengths(new_cache, state.request_lengths)
    return new_cache


def _refuse_continuous_batching(*_: Any, **__: Any) -> None:
    raise RuntimeError(
        f"a dynamic scaling cannot rotate keys in the pages of continuous batching; fix the frequencies: {FIXED_LENGTH}"
    )
