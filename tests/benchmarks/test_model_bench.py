"""Whole models: each way is what it is called, and the model is left as it came."""

from __future__ import annotations

import copy

import pytest
import torch
from benchmarks.speed import models

import ropewalk as rw
from ropewalk.errors import InputError
from ropewalk.models.extend import extension_of

YARN = rw.YaRN(factor=4)
IDS = torch.arange(40)[None] % 97


@pytest.fixture
def model(tiny):
    return copy.deepcopy(tiny)


def logits(model):
    with torch.inference_mode():
        return model(IDS, use_cache=False).logits


def test_the_ways_differ_in_the_scaling_alone(model):
    plain = logits(model)
    seen = {}
    for way in models.WAYS:
        models.put(model, way, YARN)
        seen[way] = logits(model)
    assert torch.equal(seen["plain"], plain)
    assert torch.allclose(seen["fused"], plain, atol=1e-5)
    assert torch.allclose(seen["scaled, fused"], seen["scaled"], atol=1e-5)
    assert not torch.allclose(seen["scaled"], plain, atol=1e-3)


def test_a_models_own_scaling_is_kept_where_the_scaling_is_off():
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    own = {"rope_type": "linear", "factor": 8.0, "rope_theta": 10_000.0}
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_attention_heads": 2, "num_hidden_layers": 1}
    model = LlamaForCausalLM(LlamaConfig(vocab_size=97, rope_parameters=own, **sizes)).eval()
    plain = logits(model)
    models.put(model, "fused", YARN)
    assert torch.allclose(logits(model), plain, atol=1e-5)


@pytest.mark.parametrize("measure", [models.prefill, models.decode])
def test_what_is_measured(measure, model, monkeypatch):
    told, plain = [], logits(model)
    times = {"plain": 2.0, "scaled": 4.0, "fused": 1.0, "scaled, fused": 4.0}
    went, taken = [], iter(lambda: times[went[-1]], None)
    put = models.put
    monkeypatch.setattr(models, "put", lambda model, way, scaling: went.append(way) or put(model, way, scaling))
    monkeypatch.setattr(models, "seconds_of", lambda work, _: (work(), next(taken))[1])
    row = measure(model, YARN, 24, 4, lambda: told.append(1))
    assert went == [*models.WAYS, *2 * [*models.WAYS, *reversed(models.WAYS)]]
    assert len(told) == 4 * 5
    assert {name: ratio["median"] for name, ratio in row["speed"].items()} == {
        "scaling on against off": 0.5,
        "scaling on against off, fused": 0.25,
        "fused against unfused": 2.0,
        "fused against unfused, scaled": 1.0,
    }
    tokens = 24 if measure is models.prefill else models.AT_A_TIME
    assert row["ways"]["scaled"]["tokens_per_second"]["median"] == tokens / 4.0
    assert (row["rounds"], row["ways"]["scaled"]["taken"]) == (4, [4.0] * 4)
    assert extension_of(model) is None
    assert torch.equal(logits(model), plain)


@pytest.mark.parametrize(
    ("measure", "read"), [(models.prefill, [24]), (models.decode, models.AT_A_TIME * [1])], ids=["prefill", "decode"]
)
def test_what_is_read_while_time_is_taken(measure, read, model, monkeypatch):
    timed, kept = [], []

    def seconds_of(work, _):
        hook = model.register_forward_pre_hook(
            lambda _, arguments, options: timed.append(arguments[0].shape[1]) or kept.append(options["logits_to_keep"]),
            with_kwargs=True,
        )
        work()
        hook.remove()
        return 1.0

    monkeypatch.setattr(models, "seconds_of", seconds_of)
    measure(model, YARN, 24, 1, lambda: None)
    assert timed == 2 * 4 * read
    assert set(kept) == {1}


def test_a_length_that_fails_is_a_row_with_its_reason(model, monkeypatch):
    def fails(*_, **__):
        raise ValueError("no such cache\nat all")

    monkeypatch.setattr(models, "_forward", fails)
    row = models.measure("decode", model, YARN, 24, 1, lambda: None)
    assert row == {"tokens": 24, "reason": "ValueError: no such cache"}
    assert extension_of(model) is None


def test_a_scaling_that_the_model_cannot_take_is_the_callers_mistake(model, monkeypatch):
    def refuses(*_, **__):
        raise InputError("scaling", "yarn", "another")

    monkeypatch.setattr(models, "extend", refuses)
    with pytest.raises(InputError, match="scaling"):
        models.measure("curve", model, YARN, 24, 1, lambda: None)


def test_each_way_decodes_its_own_text(model, monkeypatch):
    caches = {}
    forward = models._forward

    def watched(model, ids_BT, past_key_values):
        caches[id(past_key_values)] = past_key_values
        return forward(model, ids_BT, past_key_values=past_key_values)

    monkeypatch.setattr(models, "_forward", watched)
    models.decode(model, YARN, 24, 2, lambda: None)
    rounds, before_each = 3, 1
    # The context, and from then on a token in every step but the first, which reads the context itself.
    assert [cache.get_seq_length() for cache in caches.values()] == 4 * [
        24 + rounds * (before_each + models.AT_A_TIME) - 1
    ]


def test_a_failure_leaves_the_model_as_it_came(model):
    def fails():
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        models.prefill(model, YARN, 8, 1, fails)
    assert extension_of(model) is None
