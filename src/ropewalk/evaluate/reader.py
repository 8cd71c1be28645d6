"""A model that answers prompts, greedily: prompts that begin alike are read once, others in batches of like length."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import groupby
from typing import Any

import torch
from transformers import DynamicCache, GenerationConfig
from transformers.cache_utils import DynamicLayer

from ropewalk import config as configs
from ropewalk.evaluate.sample import Sample
from ropewalk.models.extend import extended, extension_of
from ropewalk.models.quiet import quiet_transformers
from ropewalk.policy import Policy, Request
from ropewalk.scaling import Scaling

_WORTH = 0.25  # of a prompt: with less in common, a batch is faster than going on from the cache
_BATCH_TOKENS = {"cpu": 2**13}  # prompts and answers of a batch, in tokens
_BATCH_TOKENS_ELSEWHERE = 2**17
_PADDING = 0.1  # of a batch, at most


class Reader:
    """A causal language model of transformers and its tokenizer."""

    def __init__(self, model: Any, tokenizer: Any) -> None:
        self.model = model
        self.tokenizer = tokenizer

    @contextmanager
    def scaled(self, scaling: Scaling, policy: Policy) -> Iterator[None]:
        """Inside, the model reads under this scaling; afterwards it is as it was."""
        with extended(self.model, scaling, policy=policy):
            yield

    def generate(self, samples: Sequence[Sample]) -> Iterator[tuple[Sample, str]]:
        """The likeliest continuation of each prompt, by greedy decoding, as soon as it is known.

        Prompts are taken in the order of their tokens, so that what two have in common is read once: the KV cache is
        cut back to it. Where frequencies follow the text, this is done only between prompts that are read with the same
        ones, so that every answer is that of the prompt alone.
        """
        alone: list[Sample] = []
        chain: list[Sample] = []
        for sample in sorted(samples, key=lambda sample: sample.prompt):
            if chain and self._worth(chain[-1], sample):
                chain.append(sample)
                continue
            yield from self._chained(chain, alone)
            chain = [sample]
        yield from self._chained(chain, alone)
        for batch in _batches(alone, _BATCH_TOKENS.get(self.model.device.type, _BATCH_TOKENS_ELSEWHERE)):
            yield from zip(batch, self._batched(batch), strict=True)

    def _worth(self, before: Sample, sample: Sample) -> bool:
        shared = _common(before.prompt, sample.prompt)
        return shared >= _WORTH * len(sample.prompt) and self._reads_alike(len(before.prompt), len(sample.prompt))

    def _reads_alike(self, *lengths: int) -> bool:
        """Whether prompts of these lengths are read with the same frequencies."""
        extension = extension_of(self.model)
        if extension is None or extension.length is not None:
            return True
        ropes = configs.read(self.model).ropes
        for kind, scaling in extension.scalings.items():
            if scaling.dynamic:
                original = scaling.trained_on(ropes[kind].rope)
                made_for = {extension.policy.scaled_for(length, original) for length in lengths}
                if len(made_for) > 1 or (isinstance(extension.policy, Request) and made_for != {original}):
                    return False
        return True

    def _chained(self, chain: list[Sample], alone: list[Sample]) -> Iterator[tuple[Sample, str]]:
        """Answer a chain of prompts from one cache; a prompt that stands alone is left for a batch."""
        if len(chain) < 2:
            alone += chain
            return
        cache = DynamicCache(config=configs.text_config(self.model.config))
        read: list[int] = []
        for sample in chain:
            shared = min(_common(read, sample.prompt), len(sample.prompt) - 1)
            if all(type(layer) is DynamicLayer for layer in cache.layers):
                if shared < cache.get_seq_length():
                    cache.crop(shared - cache.get_seq_length())
            else:  # a window or a state cannot be cut back
                cache = DynamicCache(config=configs.text_config(self.model.config))
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
        eos = own.eos_token_id if own.eos_token_id is not None else self.tokenizer.eos_token_id
        pad = _first(self.tokenizer.pad_token_id, _first(*(eos if isinstance(eos, list) else [eos])), 0)
        rows = [[pad] * (longest - len(sample.prompt)) + sample.prompt for sample in batch]
        mask = [[0] * (longest - len(sample.prompt)) + [1] * len(sample.prompt) for sample in batch]
        stop = list(batch[0].stop)
        greedy = GenerationConfig(
            max_new_tokens=batch[0].max_new_tokens,
            do_sample=False,
            num_beams=1,
            repetition_penalty=1.0,
            eos_token_id=eos,
            pad_token_id=pad,
            stop_strings=stop or None,
        )
        with torch.inference_mode(), quiet_transformers(logging.ERROR):
            out_BT = self.model.generate(
                torch.tensor(rows, device=self.model.device),
                attention_mask=torch.tensor(mask, device=self.model.device),
                generation_config=greedy,
                tokenizer=self.tokenizer,
                **({} if cache is None else {"past_key_values": cache}),
            )
        texts = self.tokenizer.batch_decode(out_BT[:, longest:], skip_special_tokens=True)
        return [_before(text, stop) for text in texts]


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


def _before(text: str, stop: Sequence[str]) -> str:
    """`text` up to the first of the stop strings."""
    ends = [at for at in (text.find(each) for each in stop) if at >= 0]
    return text[: min(ends)] if ends else text


def _first(*values: Any) -> Any:
    return next((value for value in values if value is not None), None)
