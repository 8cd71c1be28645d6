"""Read texts through a KV cache under a dynamic scaling, and two references that never rotate a cached key.

`AttentionInputs` replays the hidden states that each attention layer received to a model with fixed frequencies, which
then caches the correct keys. `ReferenceLlama` stores its keys unrotated and rotates all of them in every call.
"""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from tests.helpers.architectures import LENGTH, TOLERANCE, build

import ropewalk as rw
from ropewalk.compat.transformers import cache_for_call, find_output_cache
from ropewalk.scaling.policies import parse_policy

KEY_TOLERANCE = 2 * TOLERANCE  # Llama 4 and nanochat normalize keys after the rotation, with an epsilon of 1e-5
SCALING = rw.DynamicYaRN()
ROPE = rw.Rope(16, 10_000.0, LENGTH)
TEXTS = torch.randint(3, 97, (3, 6 * LENGTH), generator=torch.Generator().manual_seed(3))
TEXT = TEXTS[:1]
SHORT, LONG = TEXT[:, :LENGTH], TEXT[:, : 3 * LENGTH]
STEPPED, CONTINUOUS, REQUEST = "stepped:margin=1", "continuous:every=1,margin=1.25", "request:margin=1.25"
POLICIES = [
    STEPPED,
    "stepped:factors=[1.5,3],margin=1.1",
    "continuous:every=1,margin=1",
    "continuous:every=32,margin=1.25",
]
EVERY_POLICY = pytest.mark.parametrize("policy", POLICIES)
WITH_AND_WITHOUT_SNAPSHOT = pytest.mark.parametrize("policy", [STEPPED, CONTINUOUS])


def extended_model(policy=STEPPED, name="llama", scaling=SCALING, **options):
    """Return a tiny model that is extended with a dynamic scaling."""
    return rw.extend(build(name), scaling, policy=policy, **options)


def read_text(model, ids, *sizes, cache=None, **options):
    """Feed a text to a model in chunks of these sizes, or whole; return its logits and its cache."""
    logits = []
    with torch.no_grad():
        for part in ids.split(list(sizes) or ids.shape[1], dim=1):
            output = model(part, **cache_for_call(model, cache), use_cache=True, **options)
            cache = find_output_cache(output)
            logits.append(output.logits)
    return torch.cat(logits, dim=1), cache


def continue_text(model, ids, cache, *sizes):
    """Feed more of a text to a model; return its logits."""
    return read_text(model, ids, *sizes, cache=cache)[0]


def generate(model, ids, tokens, **options):
    """Generate greedily, for exactly this many tokens, and return the logits too."""
    defaults = {"do_sample": False, "eos_token_id": None, "pad_token_id": 0}
    return model.generate(
        ids,
        max_new_tokens=tokens,
        output_logits=True,
        output_scores=True,
        return_dict_in_generate=True,
        **(defaults | options),
    )


def pad_left(*rows):
    """Return rows of different lengths as one batch, and its attention mask."""
    longest = max(len(row) for row in rows)
    padded = [torch.cat([row.new_zeros(longest - len(row)), row]) for row in rows]
    masks = [torch.arange(longest) >= longest - len(row) for row in rows]
    return torch.stack(padded), torch.stack(masks).long()


def frequencies_under(policy, scaling=SCALING):
    """Return the function from the length of a text to its frequencies under a policy."""
    policy = parse_policy(policy)
    return lambda length: scaling.frequencies(ROPE, policy.scaled_length(length, LENGTH))


def fixed_frequencies(length, scaling=SCALING):
    """Return the function that ignores the length of a text."""
    return lambda _: scaling.frequencies(ROPE, length)


def rotate_half(x, cos, sin):
    """Rotate by tables that repeat their pairs, in half layout."""
    first, second = x.chunk(2, dim=-1)
    return x * cos + torch.cat([-second, first], dim=-1) * sin


class ReferenceLlama:
    """A tiny Llama in float64 that reads one text, stores its keys unrotated and rotates all of them in every call."""

    def __init__(self, model, frequencies_at):
        self.model = rw.restore(copy.deepcopy(model)).double()
        self.frequencies_at = frequencies_at
        self.keys = [torch.zeros(1, 2, 0, 16, dtype=torch.float64) for _ in range(2)]
        self.values = list(self.keys)

    @torch.no_grad()
    def __call__(self, ids_T):
        """Read more tokens; return their logits, [T, V]."""
        decoder, start, tokens = self.model.model, self.keys[0].shape[2], len(ids_T)
        end = start + tokens
        cos, sin = self.frequencies_at(end).cos_sin(np.arange(end), "float64")
        cos, sin = (torch.from_numpy(np.concatenate([part, part], axis=-1)) for part in (cos, sin))
        is_visible = torch.ones(tokens, end, dtype=torch.bool).tril(start)
        x = decoder.embed_tokens(ids_T)[None]
        for index, layer in enumerate(decoder.layers):
            attention, h = layer.self_attn, layer.input_layernorm(x)
            query, key, value = (
                project(h).view(1, tokens, -1, 16).transpose(1, 2)
                for project in (attention.q_proj, attention.k_proj, attention.v_proj)
            )
            self.keys[index] = torch.cat([self.keys[index], key], dim=2)
            self.values[index] = torch.cat([self.values[index], value], dim=2)
            query, key = rotate_half(query, cos[start:], sin[start:]), rotate_half(self.keys[index], cos, sin)
            key, value = key.repeat_interleave(2, dim=1), self.values[index].repeat_interleave(2, dim=1)
            weights = (query @ key.mT / 4).masked_fill(~is_visible, -torch.inf).softmax(-1)
            x = x + attention.o_proj((weights @ value).transpose(1, 2).flatten(2))
            x = x + layer.mlp(layer.post_attention_layernorm(x))
        return self.model.lm_head(decoder.norm(x))[0].float()

    def read_chunks(self, ids, *sizes):
        """Read one row in chunks; return its logits, [1, T, V]."""
        return torch.cat([self(part) for part in ids[0].split(list(sizes))])[None]

    def logits_of_steps(self, prompt_T, new_T):
        """Return the logits from which each new token was chosen, when the tokens are fed one by one."""
        return torch.cat([self(prompt_T)[-1:], *(self(token_1) for token_1 in new_T[:-1].split(1))])

    def crop(self, tokens):
        """Keep the first tokens of the text."""
        self.keys = [keys[:, :, :tokens] for keys in self.keys]
        self.values = [values[:, :, :tokens] for values in self.values]


class AttentionInputs:
    """The hidden states that each attention layer of a model received while it read a text."""

    def __init__(self):
        self.hidden_states = {}  # by attention module, and number of its call in a forward of the model

    def record(self, model, ids, *sizes, cache=None, start=0):
        """Feed a text that starts at position `start` to a model in chunks; return its cache."""
        for part in ids.split(list(sizes), dim=1):
            positions = torch.arange(start, start + part.shape[1])[None]  # without them, Bamba starts again at 0
            options = {**cache_for_call(model, cache), "position_ids": positions}
            cache = self._forward(model, part, self._append, **options)
            start += part.shape[1]
        return cache

    def replay(self, model, ids):
        """Return the cache of another model whose attention receives these hidden states for the whole text at once."""
        return self._forward(model, ids, lambda call, _: self.hidden_states[call])

    def crop(self, tokens):
        """Forget the last tokens."""
        self.hidden_states = {call: states[:, :-tokens] for call, states in self.hidden_states.items()}

    def key_error(self, cache, ids, name, scaling=SCALING, length=None, dtype=torch.float32):
        """Return how far a cache is from that of a model whose frequencies are fixed at `length`."""
        model = rw.extend(build(name), scaling, length=length).to(dtype)
        return cache_difference(cache, self.replay(model, ids))

    def _append(self, call, hidden):
        earlier = self.hidden_states.get(call)
        self.hidden_states[call] = hidden if earlier is None else torch.cat([earlier, hidden], dim=1)
        return hidden

    @staticmethod
    def _forward(model, ids, exchange, **options):
        calls, handles = {}, []

        def create_hook(name):
            def before_forward(_, args, kwargs):
                if torch.is_inference_mode_enabled():  # the decoder is being probed
                    return None
                call = name, calls.setdefault(name, 0)
                calls[name] += 1
                if args:
                    return (exchange(call, args[0]), *args[1:]), kwargs
                return args, {**kwargs, "hidden_states": exchange(call, kwargs["hidden_states"])}

            return before_forward

        for name, module in model.named_modules():
            if type(module).__name__.endswith(("Attention", "MLA")):
                handles.append(module.register_forward_pre_hook(create_hook(name), with_kwargs=True))
        try:
            with torch.no_grad():
                return find_output_cache(model(ids, use_cache=True, **options))
        finally:
            for handle in handles:
                handle.remove()


def cache_difference(cache, expected):
    """Return the largest difference between two caches, relative to the largest number of each tensor."""
    differences = []
    for layer, expected_layer in zip(cache.layers, expected.layers, strict=True):
        if isinstance(getattr(expected_layer, "keys", None), torch.Tensor):
            for name in ("keys", "values", "indexer_keys"):
                actual, correct = getattr(layer, name, None), getattr(expected_layer, name, None)
                if isinstance(correct, torch.Tensor) and correct.numel():
                    assert actual.shape == correct.shape
                    difference = (actual.float() - correct.float()).abs().max() / correct.float().abs().max()
                    differences.append(float(difference))
    assert differences
    return max(differences)
