"""Private parts of transformers that ropewalk depends on, checked with versions 5.23.0 and 5.24.0.

Shapes: B batch rows, T tokens.
"""

from __future__ import annotations

import functools
import inspect
import logging
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from transformers import Cache  # at run time, reading a configuration does without the library

PREPARE_CACHE_METHOD = "_prepare_cache_for_generation"
PREPARE_INPUTS_METHOD = "prepare_inputs_for_generation"
CONTINUOUS_BATCHING_METHOD = "init_continuous_batching"  # `generate_batch` and the context manager call it
CANDIDATE_GENERATOR_METHOD = "_get_candidate_generator"

# Cache layers that store keys exactly as attention wrote them and return the stored tensors at every step, so that keys
# can be rotated in the cache. Static, quantized and offloaded layers do not. Source: transformers/cache_utils.py.
ROTATABLE_CACHE_LAYERS = {
    "DynamicLayer",
    "DynamicSlidingWindowLayer",
    "DynamicIndexedLayer",
    "LinearAttentionAndFullAttentionLayer",
    "LinearAttentionAndSlidingWindowAttentionLayer",
}


# The names of a KV cache among the arguments and outputs of a model. Version 5.24 renamed `past_key_values` to `cache`;
# models outside of transformers may use either. Before 5.24, `cache` was the paged cache of continuous batching.
_CACHE_NAMES = ("cache", "past_key_values")


def cache_argument_name(function: Callable[..., Any]) -> str | None:
    """Return what a function calls the cache that it takes; None if it takes none."""
    parameters = inspect.signature(function).parameters
    return next((name for name in reversed(_CACHE_NAMES) if name in parameters), None)


def cache_for_call(model: Any, cache: Any) -> dict[str, Any]:
    """Return a cache as a keyword argument of a model or decoder."""
    name = cache_argument_name(model.forward)  # None for a wrapper that hands on whatever it gets
    return cache_for_generate(cache) if name is None else {name: cache}


def cache_for_generate(cache: Any) -> dict[str, Any]:
    """Return a cache as a keyword argument of `generate`."""
    from transformers import GenerationMixin

    name = cache_argument_name(GenerationMixin.prepare_inputs_for_generation)
    assert name is not None
    return {name: cache}


def find_cache_argument(arguments: Mapping[str, Any]) -> Any:
    """Return the cache among the arguments of a model, a `Cache` or a paged cache; None if there is none."""
    return next((arguments[name] for name in _CACHE_NAMES if arguments.get(name) is not None), None)


def find_output_cache(outputs: Any) -> Cache | None:
    """Return the cache among the outputs of a model; None if there is none."""
    from transformers import Cache

    if isinstance(outputs, tuple):
        return next((part for part in outputs if isinstance(part, Cache)), None)
    # The old name of an output that has the new one logs a warning.
    cache = next((getattr(outputs, name) for name in _CACHE_NAMES if hasattr(outputs, name)), None)
    return cache if isinstance(cache, Cache) else None


@contextmanager
def quiet_transformers(level: int, logger_name: str = "transformers") -> Iterator[None]:
    """Log messages of transformers only from `level` (of the logging module) upward.

    `logger_name`: that of one of its modules, or of a library that it calls.
    """
    logger = logging.getLogger(logger_name)
    previous = logger.level
    logger.setLevel(level)
    try:
        yield
    finally:
        logger.setLevel(previous)


def prepare_cache_and_report_lengths(
    model: Any,
    report_lengths: Callable[[Any, tuple[int, ...]], None],
    generation_config: Any,
    model_kwargs: dict[str, Any],
    generation_mode: Any,
    batch_size: int,
    max_cache_length: int,
) -> Any:
    """Replace the method `_prepare_cache_for_generation` of one model, to learn how long its texts may become.

    `generate` calls the method once, when it knows the prompt, `max_new_tokens` and the cache.

    Args:
        model: the model to change. The replacement calls the original method, that of the model's class.
        report_lengths: called with the cache and, for each batch row, the tokens of the prompt and the longest answer
            together, without padding.
    """
    result = type(model)._prepare_cache_for_generation(
        model, generation_config, model_kwargs, generation_mode, batch_size, max_cache_length
    )
    cache, mask_BT = find_cache_argument(model_kwargs), model_kwargs.get("attention_mask")
    if cache is not None:
        max_length = max_cache_length + 1  # the last token of the answer never enters the cache
        padding = [0] if mask_BT is None else (mask_BT.shape[1] - mask_BT.sum(-1)).tolist()
        report_lengths(cache, tuple(max_length - count for count in padding))
    return result


def prepare_inputs_with_new_cache(
    model: Any, create_cache: Callable[[Any], Any], *args: Any, **kwargs: Any
) -> dict[str, Any]:
    """Replace the method `prepare_inputs_for_generation` of one model, to choose the cache of a text read again.

    Phi-3, Phi-3.5 MoE and Phi-4 Multimodal drop the cache when the text passes the original length, and read the text
    again. Source: models/phi3/modeling_phi3.py.

    Args:
        model: the model to change. The replacement calls the original method, that of the model's class.
        create_cache: called with a cache that the method has dropped; returns the cache to use instead, or None.
    """
    inputs: dict[str, Any] = type(model).prepare_inputs_for_generation(model, *args, **kwargs)
    dropped = find_cache_argument(kwargs) if find_cache_argument(inputs) is None else None
    return inputs if dropped is None else inputs | cache_for_call(model, create_cache(dropped))


def limit_candidates(model: Any, count_candidates: Callable[[Any, int, int], int], **kwargs: Any) -> Any:
    """Replace the method `_get_candidate_generator` of one model, to limit how many candidates it verifies at once.

    Args:
        model: the model to change. The replacement calls the original method, that of the model's class.
        count_candidates: called with the cache, the tokens of the text and the number of candidates; returns how many
            of them to verify.

    Raises RuntimeError if the cache already holds tokens: `_assisted_decoding` then appends the whole text to it again.
    """
    model_kwargs = kwargs["model_kwargs"]  # `generate` updates it in place
    seen = find_cache_argument(model_kwargs).get_seq_length()
    if seen:
        raise RuntimeError(
            f"the cache holds {seen:,} tokens, which transformers would read again before it verifies candidates; "
            "start a new cache, or generate without assistant and prompt lookup"
        )
    generator = type(model)._get_candidate_generator(model, **kwargs)
    propose = generator.get_candidates

    @functools.wraps(propose)
    def get_candidates(input_ids: Any, **options: Any) -> tuple[Any, Any]:
        candidate_ids, logits = propose(input_ids, **options)
        tokens = input_ids.shape[1]
        count = count_candidates(find_cache_argument(model_kwargs), tokens, candidate_ids.shape[1] - tokens)
        return candidate_ids[:, : tokens + count], logits[:, :count] if count and logits is not None else None

    generator.get_candidates = get_candidates
    return generator


def learned_log_factors(rotary_module: Any) -> Any:
    """Return the logs of the factors that a rotary module multiplies its frequencies by, [P]; None without.

    Source: `alpha` in models/mistral_large4/modeling_mistral_large4.py, a buffer before version 5.24.
    """
    from torch import Tensor

    alpha = getattr(rotary_module, "alpha", None)
    return alpha if isinstance(alpha, Tensor) else None


def applied_softmax_factor(attention: Any, rope_parameters: Mapping[str, Any]) -> float | None:
    """Return the factor that an attention module multiplied its softmax scale by when it was built.

    Only latent attention (DeepSeek and its derivatives) has one. It lives in a modeling file that defines
    `yarn_apply_mscale` and stores its softmax scale as `scaling`. Returns None for all other modules.
    """
    apply_mscale = getattr(sys.modules.get(type(attention).__module__), "yarn_apply_mscale", None)
    if apply_mscale is None or not hasattr(attention, "qk_rope_head_dim") or not hasattr(attention, "scaling"):
        return None
    return float(apply_mscale(rope_parameters, 1.0))


@contextmanager
def without_length_reminder() -> Iterator[None]:
    """Within the block, drop the log message that a generated text is longer than `max_position_embeddings`.

    Reading longer texts is the purpose of a scaling. Source: MaxLengthCriteria in generation/stopping_criteria.py.
    """
    logger = logging.getLogger("transformers.generation.stopping_criteria")

    def is_other_message(record: logging.LogRecord) -> bool:
        return "exceeded the model's predefined maximum length" not in record.getMessage()

    logger.addFilter(is_other_message)
    try:
        yield
    finally:
        logger.removeFilter(is_other_message)
