"""Greedy answers of a transformers model to many prompts.

Prompts that start with the same tokens share one KV cache, so the common prefix is read once. The other prompts are
answered in batches of similar length. Either way an answer is the one that the prompt alone would get, up to rounding.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from transformers import DynamicCache, GenerationConfig, StoppingCriteria
from transformers.cache_utils import DynamicLayer

from ropewalk import config as configs
from ropewalk.compat.transformers import cache_for_generate, without_length_reminder
from ropewalk.evaluate.dynamic_cache import continues_from_cache, create_cache
from ropewalk.evaluate.sample import Sample, truncate_at_stop
from ropewalk.models.evaluation_mode import evaluation_mode
from ropewalk.models.extend import extended, extension_of
from ropewalk.models.wrappers import unwrap_measurable_model
from ropewalk.positions import PositionMethod
from ropewalk.scaling import Scaling
from ropewalk.scaling.policies import Policy, RequestPolicy

# Shape suffixes: B batch, T tokens.
_MIN_SHARED_FRACTION = 0.25  # of a prompt; with less in common, a batch is faster than continuing from a shared cache
_MAX_BATCH_TOKENS = {"cpu": 2**13}  # tokens of the prompts and answers of a batch, by device type
_MAX_BATCH_TOKENS_DEFAULT = 2**17
_MAX_PADDING = 0.1  # largest share of padding in a row of a batch


class TextGenerator:
    """A causal language model of transformers, or a wrapper of one, with its tokenizer.

    Raises UnsupportedModelError for a wrapper that adds virtual tokens.
    """

    def __init__(self, model: Any, tokenizer: Any) -> None:
        self.model = unwrap_measurable_model(model)
        self.tokenizer = tokenizer

    @contextmanager
    def scaled(self, scaling: Scaling | PositionMethod, policy: Policy) -> Iterator[None]:
        """Within the block, run the model under a scaling and in evaluation mode; afterwards it is as before."""
        with extended(self.model, scaling, policy=policy), evaluation_mode(self.model):
            yield

    def generate(self, samples: Sequence[Sample]) -> Iterator[tuple[Sample, str]]:
        """Yield the greedy answer to each prompt as soon as it is known, in any order.

        Sorting the prompts brings those with a common prefix together. Neighbors share a KV cache if the prefix is
        long enough and the cached keys are valid for both, which under a dynamic scaling depends on their lengths.
        """
        chains: list[list[Sample]] = []  # each sample of a chain shares a prefix with the one before
        for sample in sorted(samples, key=lambda sample: sample.prompt):
            if chains and self._shares_prefix(chains[-1][-1], sample):
                chains[-1].append(sample)
            else:
                chains.append([sample])
        for chain in chains:
            if len(chain) > 1:
                yield from self._answer_with_shared_cache(chain)
        unshared = [chain[0] for chain in chains if len(chain) == 1]
        max_tokens = _MAX_BATCH_TOKENS.get(self.model.device.type, _MAX_BATCH_TOKENS_DEFAULT)
        for batch in _make_batches(unshared, max_tokens):
            yield from zip(batch, self._answer_batch(batch), strict=True)

    def _shares_prefix(self, previous: Sample, sample: Sample) -> bool:
        """Return whether `sample` can continue from the cache of `previous`, and gains by it."""
        shared = _common_prefix_length(previous.prompt, sample.prompt)
        is_long_enough = shared >= _MIN_SHARED_FRACTION * len(sample.prompt)
        return is_long_enough and self._has_same_keys(previous, sample) and self._continues_from_cache

    @functools.cached_property
    def _continues_from_cache(self) -> bool:
        return continues_from_cache(self.model)

    def _has_same_keys(self, previous: Sample, sample: Sample) -> bool:
        """Return whether both prompts are read with the same frequencies, so that cached keys are valid for both.

        The frequencies must also be the same during the answers: a key that was rotated for an answer and back again
        is off by a rounding error. That does not matter if the policy rotates a copy of the keys.
        """
        extension = extension_of(self.model)
        if extension is None or extension.length is not None:
            return True
        policy = extension.policy
        lengths = {len(previous.prompt), len(sample.prompt)}
        if not policy.keeps_key_snapshot:
            lengths |= {len(each.prompt) + each.max_new_tokens for each in (previous, sample)}
        ropes = configs.read(self.model).ropes
        for layer_type, scaling in extension.scalings.items():
            if scaling.is_dynamic:
                original_length = scaling.resolve_original_length(ropes[layer_type].rope)
                scaled_lengths = {policy.scaled_length(length, original_length) for length in lengths}
                if len(scaled_lengths) > 1:
                    return False
                # RequestPolicy scales for the whole request, which a cache of another request does not know.
                if isinstance(policy, RequestPolicy) and scaled_lengths != {original_length}:
                    return False
        return True

    def _answer_with_shared_cache(self, chain: Sequence[Sample]) -> Iterator[tuple[Sample, str]]:
        """Answer prompts one after the other, each from the cache of the one before, cropped to the common prefix."""
        cache = create_cache(self.model)
        cached: list[int] = []
        for sample in chain:
            # Keep at least the last token of the prompt: the model must compute its logits.
            shared = min(_common_prefix_length(cached, sample.prompt), len(sample.prompt) - 1)
            if any(type(layer) is not DynamicLayer for layer in cache.layers):
                cache = create_cache(self.model)  # a sliding window or a recurrent state cannot be cropped
            elif shared < cache.get_seq_length():
                cache.crop(shared - cache.get_seq_length())
            cached = sample.prompt
            yield sample, self._generate([sample], cache)[0]

    def _answer_batch(self, batch: Sequence[Sample]) -> list[str]:
        """Answer prompts in one batch, or in halves of it if the memory is too small."""
        try:
            return self._generate(batch, None)
        except torch.OutOfMemoryError:
            if len(batch) == 1:
                raise
        torch.cuda.empty_cache()
        half = len(batch) // 2
        return self._answer_batch(batch[:half]) + self._answer_batch(batch[half:])

    def _generate(self, batch: Sequence[Sample], cache: DynamicCache | None) -> list[str]:
        """Run `model.generate` on prompts with the same `max_new_tokens` and `stop`, padded on the left."""
        longest = max(len(sample.prompt) for sample in batch)
        model_defaults = self.model.generation_config
        # Both end an answer, as in vLLM and lm-eval: not every generation config names the token that ends a turn.
        eos = model_defaults.eos_token_id
        ends = [*(eos if isinstance(eos, list) else [eos]), self.tokenizer.eos_token_id]
        eos = list(dict.fromkeys(token for token in ends if token is not None))
        pad = next(token for token in (self.tokenizer.pad_token_id, *eos, 0) if token is not None)
        rows = [[pad] * (longest - len(sample.prompt)) + sample.prompt for sample in batch]
        mask = [[0] * (longest - len(sample.prompt)) + [1] * len(sample.prompt) for sample in batch]
        stop = batch[0].stop
        # `generate` fills unset fields from the generation config of the model, so replace that one too.
        greedy = GenerationConfig(eos_token_id=eos or None, pad_token_id=pad, do_sample=False, use_cache=True)
        self.model.generation_config = greedy
        try:
            with torch.inference_mode(), without_length_reminder():
                out_BT = self.model.generate(
                    torch.tensor(rows, device=self.model.device),
                    attention_mask=torch.tensor(mask, device=self.model.device),
                    max_new_tokens=batch[0].max_new_tokens,
                    stopping_criteria=[_StopStrings(self.tokenizer, stop, longest)] if stop else None,
                    **({} if cache is None else cache_for_generate(cache)),
                )
        finally:
            self.model.generation_config = model_defaults
        answers = self.tokenizer.batch_decode(out_BT[:, longest:], skip_special_tokens=True)
        return [truncate_at_stop(answer, stop) for answer in answers]


class _StopStrings(StoppingCriteria):
    """Stop a row when its answer contains one of the strings.

    The `stop_strings` of transformers also match across the end of the prompt and the start of the answer.
    """

    def __init__(self, tokenizer: Any, stop: Sequence[str], prompt_length: int) -> None:
        self._tokenizer = tokenizer
        self._stop = stop
        self._prompt_length = prompt_length

    def __call__(self, input_ids: torch.Tensor, scores: Any, **kwargs: Any) -> torch.Tensor:
        answers = self._tokenizer.batch_decode(input_ids[:, self._prompt_length :], skip_special_tokens=True)
        is_done = [any(string in answer for string in self._stop) for answer in answers]
        return torch.tensor(is_done, device=input_ids.device)


def _make_batches(samples: Sequence[Sample], max_tokens: int) -> Iterator[list[Sample]]:
    """Yield batches of prompts of similar length with the same `max_new_tokens` and `stop`.

    The longest prompts come first, so that memory runs out at the start or never.
    """
    groups: dict[tuple[int, tuple[str, ...]], list[Sample]] = {}
    for sample in samples:
        groups.setdefault((sample.max_new_tokens, sample.stop), []).append(sample)
    for (max_new_tokens, _), group in sorted(groups.items()):
        batch: list[Sample] = []
        for sample in sorted(group, key=lambda sample: len(sample.prompt), reverse=True):
            if batch:
                longest = len(batch[0].prompt)
                is_full = (len(batch) + 1) * (longest + max_new_tokens) > max_tokens
                if is_full or len(sample.prompt) < (1 - _MAX_PADDING) * longest:
                    yield batch
                    batch = []
            batch.append(sample)
        yield batch


def _common_prefix_length(one: Sequence[int], other: Sequence[int]) -> int:
    """Return how many tokens at the start are the same."""
    for position, (token, other_token) in enumerate(zip(one, other, strict=False)):
        if token != other_token:
            return position
    return min(len(one), len(other))
