"""Position methods through `extend`, `restore`, `extended`, curves and the command line."""

from __future__ import annotations

import json
import warnings

import pytest
import torch

import ropewalk as rw
from ropewalk.evaluate.curve import perplexity_curve
from ropewalk.models.extend import extension_of
from ropewalk.positions import REGISTRY

pytestmark = pytest.mark.filterwarnings("ignore:transformers cannot express")

SPECS = sorted(REGISTRY)


@pytest.fixture(scope="session")
def random_ids():
    """200 token ids of the tiny model."""
    return [(i * i * 31 + 7 * i) % 97 for i in range(200)]


@pytest.fixture(autouse=True)
def restore_tiny(tiny):
    yield
    rw.restore(tiny)


def logits(model, ids):
    with torch.inference_mode():
        return model(input_ids=torch.tensor([ids]), use_cache=False).logits[0]


@pytest.mark.parametrize("spec", SPECS)
def test_short_texts_are_exact_and_restore_takes_it_off(tiny, random_ids, spec):
    short, long = logits(tiny, random_ids[:64]), logits(tiny, random_ids)
    rw.extend(tiny, spec)
    assert torch.equal(logits(tiny, random_ids[:64]), short)
    extended_long = logits(tiny, random_ids)
    torch.testing.assert_close(extended_long[:64], long[:64], rtol=1e-5, atol=1e-5)
    assert (extended_long[64:] - long[64:]).abs().max() > 1e-3
    rw.restore(tiny)
    assert torch.equal(logits(tiny, random_ids), long)
    assert extension_of(tiny) is None


def test_a_length_fixes_the_options(tiny, random_ids):
    rw.extend(tiny, "leaky-rerope", length=200)
    fixed = logits(tiny, random_ids)
    assert extension_of(tiny).position_method == rw.LeakyReRoPE(5.25, 32, original_length=64)
    rw.extend(tiny, rw.LeakyReRoPE(factor=5.25, window=32))
    torch.testing.assert_close(logits(tiny, random_ids), fixed, rtol=1e-5, atol=1e-5)
    rw.extend(tiny, "leaky-rerope")
    assert (logits(tiny, random_ids) - fixed).abs().max() > 1e-3
    rw.restore(tiny)


def test_methods_and_scalings_replace_each_other(tiny, random_ids):
    rw.extend(tiny, "yarn:factor=4")
    scaled = logits(tiny, random_ids)
    with warnings.catch_warnings(), rw.extended(tiny, "rerope"):
        warnings.simplefilter("error")  # nothing is saved inside the block
        assert str(extension_of(tiny).position_method) == "rerope"
    assert torch.equal(logits(tiny, random_ids), scaled)
    rw.extend(tiny, "rerope")
    positioned = logits(tiny, random_ids)
    rw.extend(tiny, "yarn:factor=4")
    assert torch.equal(logits(tiny, random_ids), scaled)
    rw.restore(tiny)
    rw.extend(tiny, "rerope")
    assert torch.equal(logits(tiny, random_ids), positioned)
    rw.restore(tiny)


def test_extend_warns_that_a_saved_model_lacks_the_method(tiny, tmp_path):
    with pytest.warns(UserWarning, match="transformers cannot express rerope: a model saved now loads without it"):
        rw.extend(tiny, "rerope")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        tiny.save_pretrained(tmp_path)
    rw.restore(tiny)
    saved = json.loads((tmp_path / "config.json").read_text())
    assert not any("ropewalk" in str(value) for value in saved.values())
    assert saved["rope_parameters"] == tiny.config.rope_parameters


def test_fuse_is_refused_and_nothing_changes(tiny, random_ids):
    before = logits(tiny, random_ids)
    with pytest.raises(rw.InputError, match="fuse: got True; expected False with rerope"):
        rw.extend(tiny, "rerope", fuse=True)
    assert torch.equal(logits(tiny, random_ids), before)


def test_a_window_that_does_not_fit_the_model_is_refused(tiny):
    with pytest.raises(rw.InputError, match="window: got 64; expected fewer tokens than the original length, 64"):
        rw.extend(tiny, rw.SelfExtend(window=64))


def test_layer_types_take_scalings_only(tiny):
    with pytest.raises(rw.InputError, match="rerope changes positions"):
        rw.extend(tiny, {"all": "rerope"})


def test_one_pass_measures_all_lengths_of_a_curve(tiny, random_ids):
    lengths = [32, 64, 100, 200]
    rows = perplexity_curve(tiny, random_ids, lengths, ["leaky-rerope"])
    in_chunks = perplexity_curve(tiny, random_ids, lengths, ["leaky-rerope"], chunk=24)
    unscaled = perplexity_curve(tiny, random_ids, lengths, ["none"])
    assert [row["scaling"] for row in rows] == ["leaky-rerope"] * 4
    assert [row["policy"] for row in in_chunks] == [None] * 4
    assert [row["nll"] for row in in_chunks] == pytest.approx([row["nll"] for row in rows], rel=1e-5)
    assert [row["nll"] for row in rows[:2]] == pytest.approx([row["nll"] for row in unscaled[:2]], rel=1e-7)
    assert rows[3]["nll"] != pytest.approx(unscaled[3]["nll"], rel=1e-5)
    for length, row in zip(lengths, rows, strict=True):
        (alone,) = perplexity_curve(tiny, random_ids[:length], [length], ["leaky-rerope"])
        assert row["nll"] == pytest.approx(alone["nll"], rel=1e-5)


def test_a_curve_measures_the_method_that_the_model_has(tiny, random_ids):
    rw.extend(tiny, "rerope")
    (row,) = perplexity_curve(tiny, random_ids, [200])
    rw.restore(tiny)
    assert row["scaling"] == "rerope"
    assert row["nll"] == perplexity_curve(tiny, random_ids, [200], ["rerope"])[0]["nll"]
