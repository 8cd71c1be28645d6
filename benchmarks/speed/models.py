"""Measure whole models with and without a scaling, with and without the fused rotation.

Shapes: B = 1 row, T tokens, V vocabulary.
"""

from __future__ import annotations

import copy
import statistics
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Any

import torch
from torch import Tensor

from benchmarks.speed.environment import current_device
from benchmarks.speed.results import describe_failure
from benchmarks.speed.timing import quartiles, relative_speed, round_seconds, run_in_rounds, time_calls
from ropewalk.compat.transformers import cache_for_call
from ropewalk.errors import InputError
from ropewalk.models.extend import extended
from ropewalk.scaling import Scaling

WARM_UP_TOKENS = 2
DECODED_TOKENS = 8  # timed per variant and round

# Whether each variant has the scaling, and whether it has the fused rotation. All run on one model, alternating.
VARIANTS = {"plain": (False, False), "scaled": (True, False), "fused": (False, True), "scaled, fused": (True, True)}
COMPARISONS = {
    "scaling on against off": ("scaled", "plain"),
    "scaling on against off, fused": ("scaled, fused", "fused"),
    "fused against unfused": ("fused", "plain"),
    "fused against unfused, scaled": ("scaled, fused", "scaled"),
}


def measure_model(
    bench: str, model: Any, scaling: Scaling, tokens: int, rounds: int, on_pass: Callable[[], None]
) -> dict[str, Any]:
    """Measure all variants of a model at one length. The model is unchanged afterwards.

    Args:
        bench: "curve" for a pass over the whole text, "decode" for tokens after a context of this length.
        model: a transformers model.
        scaling: the scaling of the scaled variants.
        tokens: the length.
        rounds: how often each variant is timed.
        on_pass: called after each timing, for a progress bar.

    Returns the row with `ways` (a timing per variant) and `speed` (their comparisons), or a `reason` if it failed.
    Raises InputError if the scaling does not fit the model.
    """
    measure = measure_prefill if bench == "curve" else measure_decode
    try:
        found = measure(model, scaling, tokens, rounds, on_pass)
    except InputError:
        raise
    except Exception as error:  # too little memory, or a cache that the model cannot use; other lengths may work
        found = {"reason": describe_failure(error)}
    return {"tokens": tokens, **found}


def measure_prefill(
    model: Any, scaling: Scaling, tokens: int, rounds: int, on_pass: Callable[[], None]
) -> dict[str, Any]:
    """Time a forward pass over `tokens` tokens in each variant; arguments as for `measure_model`."""
    ids_BT = _random_ids(model, tokens)

    def time_pass(variant: str) -> float:
        with as_variant(model, variant, scaling):
            _forward(model, ids_BT[:, :1], use_cache=False)  # the first call in a variant initializes tables
            seconds = time_calls(partial(_forward, model, ids_BT, use_cache=False), model.device)
        on_pass()
        return seconds

    return _measure_variants(model, time_pass, tokens, rounds)


def measure_decode(
    model: Any, scaling: Scaling, context: int, rounds: int, on_pass: Callable[[], None]
) -> dict[str, Any]:
    """Time decoding after a context; arguments as for `measure_model`.

    Each variant reads the context once. Every timing then decodes with a copy of that cache, so that all of them see
    the same number of tokens in memory that was allocated in the same way. The time of a token is the median of its
    round.
    """
    from transformers import DynamicCache

    context_ids_BT = _random_ids(model, context)
    caches: dict[str, DynamicCache] = {}

    def time_token(variant: str) -> float:
        with as_variant(model, variant, scaling):
            if variant not in caches:
                caches[variant] = DynamicCache(config=model.config)
                _forward(model, context_ids_BT, **cache_for_call(model, caches[variant]))
            options = cache_for_call(model, copy.deepcopy(caches[variant]))
            decode = partial(_forward, model, context_ids_BT[:, -1:], **options)
            for _ in range(WARM_UP_TOKENS):  # the first token in a variant initializes tables
                decode()
            seconds = statistics.median(time_calls(decode, model.device) for _ in range(DECODED_TOKENS))
        on_pass()
        return seconds

    return _measure_variants(model, time_token, 1, rounds)


def as_variant(model: Any, variant: str, scaling: Scaling) -> AbstractContextManager[None]:
    """Turn a model into one of VARIANTS inside the block."""
    is_scaled, is_fused = VARIANTS[variant]
    if not is_scaled and not is_fused:
        return nullcontext()
    return extended(model, scaling if is_scaled else {}, fuse=is_fused)  # with {} every layer type keeps its scaling


def _measure_variants(model: Any, time_variant: Callable[[str], float], tokens: int, rounds: int) -> dict[str, Any]:
    """Time all variants, each of which processes `tokens` tokens, and compare them."""
    timers = {variant: partial(time_variant, variant) for variant in VARIANTS}
    with torch.inference_mode(), current_device(model.device):
        for timer in timers.values():
            timer()  # warm up
        seconds = run_in_rounds(timers, rounds)
    variants = {
        variant: {
            "taken": round_seconds(values),
            "seconds": quartiles(values),
            "tokens_per_second": quartiles([tokens / value for value in values]),
        }
        for variant, values in seconds.items()
    }
    comparisons = {name: relative_speed(seconds[one], seconds[other]) for name, (one, other) in COMPARISONS.items()}
    return {"rounds": rounds, "ways": variants, "speed": comparisons}


def _forward(model: Any, ids_BT: Tensor, **options: Any) -> Tensor:
    logits_BTV: Tensor = model(ids_BT, logits_to_keep=1, **options).logits
    return logits_BTV


def _random_ids(model: Any, tokens: int) -> Tensor:
    """Return random token ids, [1, T]: the time of a pass does not depend on the text."""
    vocabulary = model.get_input_embeddings().num_embeddings
    return torch.randint(vocabulary, (1, tokens), generator=torch.Generator().manual_seed(0)).to(model.device)
