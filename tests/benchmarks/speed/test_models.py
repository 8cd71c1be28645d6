"""Each variant of a model is what its name says, and the model is unchanged after a measurement."""

from __future__ import annotations

import copy
from contextlib import contextmanager

import pytest
import torch
from benchmarks.speed import models

import ropewalk as rw
from ropewalk.compat.transformers import find_cache_argument
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


def no_progress():
    pass


def record_timed_calls(model, record, monkeypatch):
    """Call `record` before every forward call of the model that would be timed."""

    def fake_time_calls(function, device):
        hook = model.register_forward_pre_hook(record, with_kwargs=True)
        function()
        hook.remove()
        return 1.0

    monkeypatch.setattr(models, "time_calls", fake_time_calls)


def test_the_variants_differ_only_in_the_scaling(model):
    plain = logits(model)
    results = {}
    for variant in models.VARIANTS:
        with models.as_variant(model, variant, YARN):
            results[variant] = logits(model)
    assert torch.equal(results["plain"], plain)
    assert torch.allclose(results["fused"], plain, atol=1e-5)
    assert torch.allclose(results["scaled, fused"], results["scaled"], atol=1e-5)
    assert not torch.allclose(results["scaled"], plain, atol=1e-3)


def test_variants_without_the_scaling_keep_the_scaling_of_the_model():
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    linear = {"rope_type": "linear", "factor": 8.0, "rope_theta": 10_000.0}
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_attention_heads": 2, "num_hidden_layers": 1}
    model = LlamaForCausalLM(LlamaConfig(vocab_size=97, rope_parameters=linear, **sizes)).eval()
    plain = logits(model)
    with models.as_variant(model, "fused", YARN):
        assert torch.allclose(logits(model), plain, atol=1e-5)


@pytest.mark.parametrize("measure", [models.measure_prefill, models.measure_decode])
def test_variants_alternate_and_are_compared(measure, model, monkeypatch):
    plain = logits(model)
    seconds = {"plain": 2.0, "scaled": 4.0, "fused": 1.0, "scaled, fused": 4.0}
    variants, passes = [], []
    as_variant = models.as_variant

    @contextmanager
    def record_variant(model, variant, scaling):
        variants.append(variant)
        with as_variant(model, variant, scaling):
            yield

    def fake_time_calls(function, device):
        function()
        return seconds[variants[-1]]

    monkeypatch.setattr(models, "as_variant", record_variant)
    monkeypatch.setattr(models, "time_calls", fake_time_calls)
    row = measure(model, YARN, 24, 4, lambda: passes.append(1))
    assert variants == [*models.VARIANTS, *2 * [*models.VARIANTS, *reversed(models.VARIANTS)]]
    assert len(passes) == 4 * 5
    assert {name: ratio["median"] for name, ratio in row["speed"].items()} == {
        "scaling on against off": 0.5,
        "scaling on against off, fused": 0.25,
        "fused against unfused": 2.0,
        "fused against unfused, scaled": 1.0,
    }
    tokens = 24 if measure is models.measure_prefill else 1
    assert row["ways"]["scaled"]["tokens_per_second"]["median"] == tokens / 4.0
    assert (row["rounds"], row["ways"]["scaled"]["taken"]) == (4, [4.0] * 4)
    assert extension_of(model) is None
    assert torch.equal(logits(model), plain)


@pytest.mark.parametrize(
    ("measure", "expected"),
    [(models.measure_prefill, [24]), (models.measure_decode, models.DECODED_TOKENS * [1])],
    ids=["prefill", "decode"],
)
def test_the_timed_passes_read_the_expected_tokens(measure, expected, model, monkeypatch):
    lengths, logits_to_keep = [], []

    def record(module, arguments, options):
        lengths.append(arguments[0].shape[1])
        logits_to_keep.append(options["logits_to_keep"])

    record_timed_calls(model, record, monkeypatch)
    measure(model, YARN, 24, 1, no_progress)
    assert lengths == 2 * 4 * expected
    assert set(logits_to_keep) == {1}


def test_a_length_that_fails_is_a_row_with_the_reason(model, monkeypatch):
    def fail(*_, **__):
        raise ValueError("no such cache\nat all")

    monkeypatch.setattr(models, "_forward", fail)
    row = models.measure_model("decode", model, YARN, 24, 1, no_progress)
    assert row == {"tokens": 24, "reason": "ValueError: no such cache"}
    assert extension_of(model) is None


def test_a_scaling_that_the_model_does_not_accept_is_an_input_error(model, monkeypatch):
    def refuse(*_, **__):
        raise InputError("scaling", "yarn", "another")

    monkeypatch.setattr(models, "extended", refuse)
    with pytest.raises(InputError, match="scaling"):
        models.measure_model("curve", model, YARN, 24, 1, no_progress)


def test_every_timed_token_sees_a_cache_of_the_same_state(model, monkeypatch):
    """Whatever was decoded before: its variant, its rotations of keys, or memory that grew."""
    states = []

    def record(module, arguments, options):
        cache = find_cache_argument(options)
        assert all(layer.keys.is_contiguous() for layer in cache.layers)
        states.append((cache.get_seq_length(), arguments[0].tolist()))

    record_timed_calls(model, record, monkeypatch)
    models.measure_decode(model, YARN, 24, 2, no_progress)
    rounds = 3  # with the one to warm up
    first = 24 + models.WARM_UP_TOKENS
    last_id = models._random_ids(model, 24)[:, -1:].tolist()
    expected = [(first + token, last_id) for token in range(models.DECODED_TOKENS)]
    assert states == rounds * 4 * expected


def test_a_slow_token_does_not_change_the_time_of_a_round(model, monkeypatch):
    seconds = iter([1.0, 1.0, 90.0, *[1.0] * 1000])
    monkeypatch.setattr(models, "time_calls", lambda function, device: (function(), next(seconds))[1])
    row = models.measure_decode(model, YARN, 8, 1, no_progress)
    assert row["ways"]["plain"]["taken"] == [1.0]


def test_an_interruption_leaves_the_model_unchanged(model):
    def interrupt():
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        models.measure_prefill(model, YARN, 8, 1, interrupt)
    assert extension_of(model) is None
