"""Tensors that grow in place equal concatenated ones, and keep what others still need."""

from __future__ import annotations

import copy
import io
import pickle

import pytest
import torch
from tests.helpers.cached_text import CONTINUOUS, LONG, STEPPED, continue_text, extended_model, read_text
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer

from ropewalk.models.key_state import get_key_state
from ropewalk.models.token_buffer import TokenBuffer, append_in_place

pytestmark = [
    pytest.mark.usefixtures("one_thread"),
    pytest.mark.filterwarnings("ignore:transformers cannot express"),  # nothing is saved here
]


def tokens(count, seed=0, rows=2):
    return torch.randn(rows, 3, count, 4, generator=torch.Generator().manual_seed(seed))


class TestAppend:
    @torch.no_grad()
    def test_results_equal_concatenation(self):
        buffer, expected = TokenBuffer(), tokens(5)
        actual = expected
        for seed, count in enumerate((1, 1, 7, 0, 40, 1)):
            actual = buffer.append(actual, tokens(count, seed))
            expected = torch.cat([expected, tokens(count, seed)], dim=-2)
            assert torch.equal(actual, expected)

    @torch.no_grad()
    def test_most_tokens_are_appended_without_a_copy(self):
        buffer, grown = TokenBuffer(), tokens(100)
        addresses = []
        for seed in range(100):
            grown = buffer.append(grown, tokens(1, seed))
            addresses.append(grown.data_ptr())
        assert len(set(addresses)) < 8

    @torch.no_grad()
    def test_the_given_tensors_are_not_changed(self):
        given, new = tokens(5), tokens(1, seed=1)
        grown = TokenBuffer().append(given, new)
        grown.zero_()
        assert torch.equal(given, tokens(5))
        assert torch.equal(new, tokens(1, seed=1))

    @torch.no_grad()
    @pytest.mark.parametrize(
        "change",
        [
            lambda grown: grown[:, :, :4],  # the memory behind it is overwritten
            lambda grown: grown[:, :, 2:],
            lambda grown: grown[:1],
            lambda grown: grown.clone(),
            lambda grown: grown.bfloat16(),
            lambda grown: grown[[1, 0, 0]],
            lambda grown: grown[..., :2],
        ],
        ids=[
            "cropped",
            "without the first",
            "fewer rows",
            "copied",
            "another dtype",
            "selected rows",
            "fewer channels",
        ],
    )
    def test_a_tensor_that_was_changed_meanwhile(self, change):
        buffer = TokenBuffer()
        changed = change(buffer.append(tokens(5), tokens(2, seed=1)))
        new = tokens(3, seed=2, rows=len(changed)).to(changed.dtype)[..., : changed.shape[-1]]
        expected = torch.cat([changed, new], dim=-2)
        assert torch.equal(buffer.append(changed, new), expected)

    def test_gradients_flow(self):
        given, new = tokens(5).requires_grad_(), tokens(1).requires_grad_()
        TokenBuffer().append(given, new).sum().backward()
        assert given.grad is not None
        assert new.grad is not None

    def test_memory_of_inference_mode_is_not_written_outside_it(self):
        buffer = TokenBuffer()
        with torch.inference_mode():
            grown = buffer.append(tokens(5), tokens(1))
        with torch.no_grad():
            after = buffer.append(grown, tokens(1, seed=1))
        assert torch.equal(after[..., -1:, :], tokens(1, seed=1))
        assert not after.is_inference()


class TestCacheLayers:
    def test_keys_and_values_stay_in_their_memory_from_token_to_token(self):
        model = extended_model(CONTINUOUS)
        _, cache = read_text(model, LONG[:, :60])
        addresses = set()
        for token in range(60, 75):
            continue_text(model, LONG[:, token : token + 1], cache)
            addresses.add(tuple((layer.keys.data_ptr(), layer.values.data_ptr()) for layer in cache.layers))
        assert get_key_state(cache).rotations >= 14
        assert len(addresses) <= 4  # as the memory doubles at most that often

    def test_policies_that_rotate_seldom_leave_the_layers_alone(self):
        _, cache = read_text(extended_model(STEPPED), LONG, 20, 76)
        assert {type(layer) for layer in cache.layers} == {DynamicLayer}

    def test_the_cache_that_was_copied_does_not_change(self):
        model = extended_model(CONTINUOUS)
        _, cache = read_text(model, LONG[:, :60], 40, 19, 1)
        copies = [copy.deepcopy(cache), pickle.loads(pickle.dumps(cache))]
        saved = io.BytesIO()
        torch.save(cache, saved)
        saved.seek(0)
        copies.append(torch.load(saved, weights_only=False))
        keys = cache.layers[0].keys.clone()
        expected = continue_text(model, LONG[:, 60:70], cache, 1, 9)
        for each in copies:
            assert torch.equal(each.layers[0].keys, keys)
            assert torch.equal(continue_text(model, LONG[:, 60:70], each, 1, 9), expected)

    @torch.no_grad()
    def test_a_layer_without_tokens(self):
        cache = DynamicCache()
        cache.update(tokens(2), tokens(2), 0)
        (layer,) = cache.layers
        append_in_place(layer)
        cache.update(tokens(1, seed=1), tokens(1, seed=2), 0)
        assert torch.equal(layer.keys, torch.cat([tokens(2), tokens(1, seed=1)], dim=-2))
        assert torch.equal(layer.values, torch.cat([tokens(2), tokens(1, seed=2)], dim=-2))
        cache.reset()
        cache.update(tokens(3, seed=3), tokens(3, seed=4), 0)
        assert torch.equal(layer.keys, tokens(3, seed=3))
