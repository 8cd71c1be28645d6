from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from peft import LoraConfig, PrefixTuningConfig, get_peft_model
from tests.helpers.architectures import build
from tests.helpers.plain_nll import plain_nll

import ropewalk as rw
from ropewalk.evaluate import perplexity
from ropewalk.evaluate.perplexity import perplexity_of, token_nll

SHORT_IDS = torch.randint(3, 97, (40,), generator=torch.Generator().manual_seed(3)).tolist()


def measured_nll(model, ids, **options):
    return np.concatenate(list(token_nll(model, torch.tensor(ids), **options)))


@pytest.mark.parametrize("chunk", [None, 1, 7, 64, 199, 200])
def test_losses_are_those_of_a_plain_forward_call(tiny, random_ids, chunk):
    assert np.allclose(measured_nll(tiny, random_ids, chunk=chunk), plain_nll(tiny, random_ids), atol=1e-5)


@pytest.mark.parametrize("chunk", [None, 16])
def test_tokens_are_read_at_the_given_positions(tiny, random_ids, chunk):
    positions = torch.tensor([*range(10), *range(30, 45), *range(50, 65)])
    distance_TK = positions[:, None] - positions[None]
    with torch.inference_mode():
        mask = torch.where(distance_TK >= 0, 0.0, -torch.inf)[None, None]  # a mask of its own: no text is split
        ids = torch.tensor(random_ids[:40])
        logits_TV = tiny(ids[None], position_ids=positions[None], attention_mask=mask, use_cache=False).logits[0]
    expected = torch.nn.functional.cross_entropy(logits_TV[:-1].double(), ids[1:], reduction="none").numpy()
    assert np.allclose(measured_nll(tiny, random_ids[:40], chunk=chunk, positions_T=positions), expected, atol=1e-5)
    assert not np.allclose(measured_nll(tiny, random_ids[:40]), expected, atol=1e-3)


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


@pytest.mark.parametrize("name", ["llama4_text", "llama4", "gemma3n_text", "minimax", "recurrent_gemma"])
def test_architectures_that_are_built_differently(name):
    """Llama 4 names no base model, Gemma 3n lists the width of each layer, the last two have caches of their own."""
    model = build(name)
    assert np.allclose(measured_nll(model, SHORT_IDS), plain_nll(model, SHORT_IDS), atol=1e-5)


@pytest.mark.parametrize("name", ["llama4_text", "gemma3n_text"])
def test_architectures_that_are_built_differently_in_chunks(name):
    model = build(name)
    assert np.allclose(measured_nll(model, SHORT_IDS, chunk=7), plain_nll(model, SHORT_IDS), atol=1e-5)


@pytest.mark.parametrize("name", ["minimax", "recurrent_gemma"])
def test_a_model_that_cannot_continue_from_a_cache_reads_the_whole_text_at_once(name, monkeypatch):
    model = build(name)
    with pytest.raises(
        rw.InputError, match=f"chunk: got 7; expected the whole text at once for {type(model).__name__}"
    ):
        measured_nll(model, SHORT_IDS, chunk=7)
    monkeypatch.setattr(perplexity, "_default_chunk", lambda _: 7)
    assert np.allclose(measured_nll(model, SHORT_IDS), plain_nll(model, SHORT_IDS), atol=1e-5)


def test_a_model_without_a_head_is_refused(tiny, random_ids):
    with pytest.raises(rw.InputError, match="LlamaModel is not supported: it has no language modeling head"):
        measured_nll(tiny.model, random_ids)


def test_dropout_is_off_and_every_part_stays_in_its_mode(tiny, random_ids):
    model = copy.deepcopy(tiny)
    for layer in model.model.layers:
        layer.self_attn.config.attention_dropout = layer.self_attn.attention_dropout = 0.5
    model.train()
    model.lm_head.eval()
    modes = {module: module.training for module in model.modules()}
    parts = token_nll(model, torch.tensor(random_ids), chunk=64)
    first = next(parts)
    assert {module: module.training for module in model.modules()} == modes  # also between two parts
    assert np.allclose(np.concatenate([first, *parts]), plain_nll(tiny, random_ids), atol=1e-5)
    assert {module: module.training for module in model.modules()} == modes


@pytest.mark.parametrize("chunk", [None, 64])
def test_a_wrapper_is_measured_as_the_model_inside(tiny, random_ids, chunk):
    lora = LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights=False)
    peft_model = get_peft_model(copy.deepcopy(tiny), lora)
    expected = plain_nll(peft_model.eval(), random_ids)
    assert not np.allclose(expected, plain_nll(tiny, random_ids), atol=1e-3)  # the adapter has an effect
    assert np.allclose(measured_nll(peft_model, random_ids, chunk=chunk), expected, atol=1e-5)
    assert np.allclose(measured_nll(torch.nn.DataParallel(peft_model), random_ids, chunk=chunk), expected, atol=1e-5)


def test_prompt_learning_is_refused(tiny, random_ids):
    prefix_model = get_peft_model(copy.deepcopy(tiny), PrefixTuningConfig(num_virtual_tokens=3, task_type="CAUSAL_LM"))
    with pytest.raises(rw.InputError, match="its virtual tokens come before the text"):
        measured_nll(prefix_model, random_ids)
