"""A model that answers prompts, greedily: prompts that begin alike are read once, others in batches of like length."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import groupby
from typing import Any

import torch
from transformers import DynamicCache, GenerationConfig, StoppingCriteria
from transformers.cache_utils import DynamicLayer

from ropewalk import config as configs
from ropewalk.compat.transformers import quiet_transformers
from ropewalk.evaluate.sample import Sample, truncate_at_stop
from ropewalk.models.extend import extended, extension_of
from ropewalk.scaling import Scaling
from ropewalk.scaling.policies import Policy, RequestPolicy

_WORTH = 0.25  # of a prompt: with less in common, a batch is faster than going on from the cache
_BATCH_TOKENS = {"cpu": 2**13}  # prompts and answers of a batch, in tokens
_BATCH_TOKENS_ELSEWHERE = 2**17
_PADDING = 0.1  # of a batch, at most


class TextGenerator:
    """A causal language model of transformers and its tokenizer."""

    def __init__(self, model: Any, tokenizer: Any) -> None:
        self.model = model
        self.tokenizer = tokenizer

    @contextmanager
    def scaled(self, scaling: Scaling, policy: Policy) -> Iterator[None]:
        """Inside, the model reads under this scaling, without dropout; afterwards it is as it was."""
        training = self.model.training
        self.model.eval()
        try:
            with extended(self.model, scaling, policy=policy):
                yield
        finally:
            self.model.train(training)

    def generate(self, samples: Sequence[Sample]) -> Iterator[tuple[Sample, str]]:
        """The likeliest continuation of each prompt, by greedy decoding, as soon as it is known.

        Prompts are taken in the order of their tokens, so that what two have in common is read once: the KV cache is
        cut back to it. Where frequencies follow the text, this is done only between prompts that are read with the same
        ones, so that every answer is that of the prompt alone.
        """
        in_process_executor: list[Sample] = []
        chain: list[Sample] = []
        for sample in sorted(samples, key=lambda sample: sample.prompt):
            if chain and self._worth(chain[-1], sample):
                chain.append(sample)
                continue
            yield from self._chained(chain, in_process_executor)
            chain = [sample]
        yield from self._chained(chain, in_process_executor)
        for batch in _batches(in_process_executor, _BATCH_TOKENS.get(self.model.device.type, _BATCH_TOKENS_ELSEWHERE)):
            yield from zip(batch, self._batched(batch), strict=True)

    def _worth(self, before: Sample, sample: Sample) -> bool:
        shared = _common(before.prompt, sample.prompt)
        return shared >= _WORTH * len(sample.prompt) and self._reads_alike(before, sample)

    def _reads_alike(self, *samples: Sample) -> bool:
        """Whether these prompts are read with the same frequencies, and keys come back from the answers unchanged.

        A key that was turned for an answer and back again is off by a rounding, unless it is turned from a copy.
        """
        extension = extension_of(self.model)
        if extension is None or extension.length is not None:
            return True
        policy, ropes = extension.policy, configs.read(self.model).ropes
        lengths = {len(sample.prompt) for sample in samples}
        if not policy.keeps_key_snapshot:
            lengths |= {len(sample.prompt) + sample.max_new_tokens for sample in samples}
        for kind, scaling in extension.scalings.items():
            if scaling.is_dynamic:
                original = scaling.resolve_original_length(ropes[kind].rope)
                made_for = {policy.scaled_for(length, original) for length in lengths}
                if len(made_for) > 1 or (isinstance(policy, RequestPolicy) and made_for != {original}):
                    return False
        return True

    def _chained(self, chain: list[Sample], in_process_executor: list[Sample]) -> Iterator[tuple[Sample, str]]:
        """Answer a chain of prompts from one cache; a prompt that stands alone is left for a batch."""
        if len(chain) < 2:
            in_process_executor += chain
            return
        cache = DynamicCache(config=configs.get_text_config(self.model.config))
        read: list[int] = []
        for sample in chain:
            shared = min(_common(read, sample.prompt), len(sample.prompt) - 1)
            if all(type(layer) is DynamicLayer for layer in cache.layers):
                if shared < cache.get_seq_length():
                    cache.crop(shared - cache.get_seq_length())
            else:  # a window or a state cannot be cut back
                cache = DynamicCache(config=configs.get_text_config(self.model.config))
            read = sample.prompt
            yield sample, self._continued([sample], cache)[0]

    def _batched(self, batch: Sequence[Sample]) -> list[str]:
        """Answer a batch, in halves where the memory does not hold it."""
        try:
            return self._continued(batch, None)
        except torch.OutOfMemoryError:
            if len(batch) == 1:
                raise
        torch.cuda.empty_cache()
        half = len(batch) // 2
        return self._batched(batch[:half]) + self._batched(batch[half:])

    def _continued(self, batch: Sequence[Sample], cache: DynamicCache | None) -> list[str]:
        longest = max(len(sample.prompt) for sample in batch)
        own = self.model.generation_config
        eos = _first(own.eos_token_id, self.tokenizer.eos_token_id)
        pad = _first(self.tokenizer.pad_token_id, _first(*(eos if isinstance(eos, list) else [eos])), 0)
        rows = [[pad] * (longest - len(sample.prompt)) + sample.prompt for sample in batch]
        mask = [[0] * (longest - len(sample.prompt)) + [1] * len(sample.prompt) for sample in batch]
        stop = batch[0].stop
        # What it leaves out, transformers takes from the model's own: for the while, that one is as bare.
        greedy = GenerationConfig(eos_token_id=eos, pad_token_id=pad, do_sample=False, use_cache=True)
        self.model.generation_config = greedy
        try:
            with torch.inference_mode(), quiet_transformers(logging.ERROR):
                out_BT = self.model.generate(
                    torch.tensor(rows, device=self.model.device),
                    attention_mask=torch.tensor(mask, device=self.model.device),
                    max_new_tokens=batch[0].max_new_tokens,
                    stopping_criteria=[_Said(self.tokenizer, stop, longest)] if stop else None,
                    **({} if cache is None else {"past_key_values": cache}),
                )
        finally:
            self.model.generation_config = own
        texts = self.tokenizer.batch_decode(out_BT[:, longest:], skip_special_tokens=True)
        return [truncate_at_stop(text, stop) for text in texts]


class _Said(StoppingCriteria):
    """A row is done when one of the strings stands in its answer; transformers' own looks at the prompt's end too."""

    def __init__(self, tokenizer: Any, stop: Sequence[str], start: int) -> None:
        self._tokenizer, self._stop, self._start = tokenizer, stop, start

    def __call__(self, input_ids: torch.Tensor, scores: Any, **kwargs: Any) -> torch.Tensor:
        texts = self._tokenizer.batch_decode(input_ids[:, self._start :], skip_special_tokens=True)
        said = [any(each in text for each in self._stop) for text in texts]
        return torch.tensor(said, device=input_ids.device)


def _batches(samples: Sequence[Sample], budget: int) -> Iterator[list[Sample]]:
    """Samples that end alike, in batches of like length, the longest first, so that memory runs out early or never."""

    def ending(sample: Sample) -> tuple[int, tuple[str, ...]]:
        return sample.max_new_tokens, sample.stop

    for (new, _), same in groupby(sorted(samples, key=ending), key=ending):
        batch: list[Sample] = []
        for sample in sorted(same, key=lambda sample: -len(sample.prompt)):
            longest = len(batch[0].prompt) if batch else len(sample.prompt)
            full = (len(batch) + 1) * (longest + new) > budget or len(sample.prompt) < (1 - _PADDING) * longest
            if batch and full:
                yield batch
                batch = []
            batch.append(sample)
        yield batch


def _common(one: Sequence[int], other: Sequence[int]) -> int:
    """Tokens at the beginning that both have."""
    for at, (mine, yours) in enumerate(zip(one, other, strict=False)):
        if mine != yours:
            return at
    return min(len(one), len(other))


def _first(*values: Any) -> Any:
    return next((value for value in values if value is not None), None)
