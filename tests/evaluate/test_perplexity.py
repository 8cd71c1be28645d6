from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from tests.helpers.plain_nll import plain_nll

from ropewalk.evaluate.perplexity import perplexity_of, token_nll


def measured_nll(model, ids, **options):
    return np.concatenate(list(token_nll(model, torch.tensor(ids), **options)))


@pytest.mark.parametrize("chunk", [None, 1, 7, 64, 199, 200])
def test_losses_are_those_of_a_plain_forward_call(tiny, random_ids, chunk):
    assert np.allclose(measured_nll(tiny, random_ids, chunk=chunk), plain_nll(tiny, random_ids), atol=1e-5)


def test_soft_caps_and_logit_scales_of_the_head_are_applied(random_ids):
    from transformers import Gemma2Config, Gemma2ForCausalLM

    torch.manual_seed(0)
    config = Gemma2Config(
        vocab_size=97,
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=16,
        final_logit_softcapping=0.5,
        max_position_embeddings=256,
    )
    model = Gemma2ForCausalLM(config).eval()
    assert np.allclose(measured_nll(model, random_ids), plain_nll(model, random_ids), atol=1e-5)


def test_a_forward_that_a_hook_installed_on_the_body_is_called_and_stays(tiny, random_ids):
    hooked = copy.deepcopy(tiny)
    calls = []
    original = hooked.model.forward

    def forward(*args, **kwargs):
        calls.append(1)
        return original(*args, **kwargs)

    hooked.model.forward = forward
    assert np.array_equal(measured_nll(hooked, random_ids), measured_nll(tiny, random_ids))
    assert hooked.model.forward is forward
    assert calls == [1]


def test_inference_mode_is_off_between_parts(tiny, random_ids):
    for _ in token_nll(tiny, torch.tensor(random_ids), chunk=64):
        assert not torch.is_inference_mode_enabled()


def test_the_perplexity_of_a_huge_loss_is_finite():
    assert perplexity_of(0.0) == 1
    assert perplexity_of(1e6) < float("inf")
