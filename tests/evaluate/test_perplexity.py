from __future__ import annotations

import copy
import math
import random

import pytest
import torch

import ropewalk as rw
from ropewalk.evaluate import perplexity
from ropewalk.evaluate.perplexity import passes, perplexity_curve, token_nll


@pytest.fixture
def ids():
    dice = random.Random(0)
    return [dice.randrange(97) for _ in range(200)]


def whole(model, ids):
    """The NLL of each token after the first, from all logits of one plain pass, in float64."""
    with torch.inference_mode():
        logits = model(torch.tensor([ids]), use_cache=False).logits[0, :-1].double()
    return torch.nn.functional.cross_entropy(logits, torch.tensor(ids[1:]), reduction="none")


@pytest.mark.parametrize("spec", ["none", "yarn:factor=4", "ntk:factor=2"])
def test_every_length_of_one_pass_is_what_a_pass_of_its_own_gives(tiny, ids, spec):
    rows = perplexity_curve(tiny, ids, [10, 64, 150, 200], [spec])
    assert [row["length"] for row in rows] == [10, 64, 150, 200]
    rw.extend(tiny, spec)
    for row in rows:
        nll = whole(tiny, ids[: row["length"]])
        assert row["tokens"] == row["length"] - 1
        assert row["nll"] == pytest.approx(float(nll.mean()), rel=1e-5)
        assert row["ppl"] == pytest.approx(math.exp(float(nll.mean())), rel=1e-5)
        assert row["ppl_last"] == pytest.approx(math.exp(float(nll[-1024:].mean())), rel=1e-5)
    rw.restore(tiny)


def test_a_dynamic_scaling_is_read_at_the_frequencies_of_each_length(tiny, ids):
    rows = perplexity_curve(tiny, ids, [64, 100, 200], ["dynamic-yarn"])
    for row, factor in zip(rows, (1, 100 / 64, 200 / 64), strict=True):
        (static,) = perplexity_curve(tiny, ids, [row["length"]], [rw.YaRN(factor=factor)])
        assert row["ppl"] == pytest.approx(static["ppl"], rel=1e-6)


def test_ppl_last_is_over_the_last_tokens_alone(tiny, ids, monkeypatch):
    monkeypatch.setattr(perplexity, "LAST", 20)
    (row,) = perplexity_curve(tiny, ids, [200])
    assert row["ppl_last"] == pytest.approx(float(whole(tiny, ids)[-20:].mean().exp()), rel=1e-5)


@pytest.mark.parametrize("chunk", [1, 7, 64, 199, 200])
def test_chunks_through_the_cache_give_the_same_losses(tiny, ids, chunk):
    parts = torch.cat([torch.from_numpy(part) for part in token_nll(tiny, torch.tensor(ids), chunk=chunk)])
    assert torch.allclose(parts, whole(tiny, ids), atol=1e-5)


@pytest.mark.parametrize("chunk", [10, 64])
def test_a_static_scaling_through_the_cache_is_what_it_is_at_once(tiny, ids, chunk):
    at_once = perplexity_curve(tiny, ids, [64, 200], ["none", "yarn:factor=4"])
    cached = perplexity_curve(tiny, ids, [64, 200], ["none", "yarn:factor=4"], chunk=chunk)
    assert [row["nll"] for row in cached] == pytest.approx([row["nll"] for row in at_once], rel=1e-5)
    assert {(row["chunk"], row["policy"]) for row in cached} == {(chunk, None)}


@pytest.mark.parametrize("policy", ["stepped", "continuous:every=1"])
def test_a_dynamic_scaling_through_the_cache_follows_the_text_as_it_grows(tiny, ids, policy):
    lengths = [50, 64, 128, 200]
    cached = perplexity_curve(tiny, ids, lengths, ["dynamic-yarn"], chunk=16, policy=policy)
    unscaled = perplexity_curve(tiny, ids, lengths, ["none"], chunk=16)
    assert [row["nll"] for row in cached[:2]] == [row["nll"] for row in unscaled[:2]]  # the trained 64 tokens
    assert all(row["nll"] != other["nll"] for row, other in zip(cached[2:], unscaled[2:], strict=True))
    with pytest.warns(UserWarning, match="transformers cannot express"):
        rw.extend(tiny, "dynamic-yarn", policy=policy)
    with torch.inference_mode():
        cache, logits = None, []
        for part in torch.tensor([ids]).split(16, dim=1):
            outputs = tiny(part, past_key_values=cache)
            cache = outputs.past_key_values
            logits.append(outputs.logits[0])
    rw.restore(tiny)
    nll = torch.nn.functional.cross_entropy(torch.cat(logits)[:-1], torch.tensor(ids[1:]))
    assert cached[-1]["nll"] == pytest.approx(float(nll), rel=1e-5)
    assert {(row["chunk"], row["policy"]) for row in cached} == {(16, policy)}


def test_a_pass_through_the_cache_gives_every_length_of_a_dynamic_scaling(tiny, ids):
    read = []
    perplexity_curve(tiny, ids, [100, 150, 200], ["dynamic-ntk"], chunk=50, on_tokens=read.append)
    assert sum(read) == pytest.approx(200)


def test_a_request_through_the_cache_is_fixed_for_each_length(tiny, ids):
    (row,) = perplexity_curve(tiny, ids, [128], ["dynamic-yarn"], chunk=32, policy="request:margin=1.5")
    (static,) = perplexity_curve(tiny, ids, [128], [rw.YaRN(factor=3)])
    assert row["nll"] == pytest.approx(static["nll"], rel=1e-6)
    assert row["policy"] == "request:margin=1.5"


@pytest.mark.parametrize(
    ("options", "message"), [({"chunk": 0}, "chunk"), ({"policy": "steped"}, "did you mean stepped")]
)
def test_chunks_and_policies_that_do_not_exist(tiny, ids, options, message):
    with pytest.raises(rw.InputError, match=message):
        perplexity_curve(tiny, ids, [100], ["dynamic-ntk"], **options)


def test_cells_of_equal_frequencies_share_a_pass(tiny):
    scalings = [rw.parse(spec) for spec in ("none", "linear:factor=2", "dynamic-ntk", "dynamic-yarn")]
    groups = passes(tiny, [32, 64, 128], scalings)
    shown = [[(str(cell.scaling), cell.length) for cell in group] for group in groups]
    # Within the trained 64 tokens the dynamic ones are the unscaled model.
    assert sorted(shown[0]) == [
        ("dynamic-ntk", 32), ("dynamic-ntk", 64), ("dynamic-yarn", 32), ("dynamic-yarn", 64),
        ("none", 32), ("none", 64), ("none", 128),
    ]  # fmt: skip
    assert shown[1:] == [
        [("linear:factor=2", 32), ("linear:factor=2", 64), ("linear:factor=2", 128)],
        [("dynamic-ntk", 128)],
        [("dynamic-yarn", 128)],
    ]


def test_done_rows_are_not_read_again(tiny, ids):
    read = []
    done = {("none", None, None, 50), ("none", None, None, 100)}
    rows = perplexity_curve(tiny, ids, [50, 100], ["none", "ntk:factor=2"], done=done, on_tokens=read.append)
    assert [(row["scaling"], row["length"]) for row in rows] == [("ntk:factor=2", 50), ("ntk:factor=2", 100)]
    assert sum(read) == pytest.approx(100)


def test_progress_counts_every_token_of_every_pass(tiny, ids):
    read = []
    perplexity_curve(tiny, ids, [100, 200], ["none", "dynamic-ntk"], on_tokens=read.append)
    assert len(read) > 2  # it moves within a pass, layer by layer
    assert sum(read) == pytest.approx(200 + 100 + 200)


def test_the_model_is_left_as_it_was(tiny, ids):
    batch = torch.tensor([ids])
    before = tiny(batch).logits
    perplexity_curve(tiny, ids, [100], ["linear:factor=3"])
    assert torch.equal(tiny(batch).logits, before)
    rw.extend(tiny, "yarn:factor=4")
    extended = tiny(batch).logits
    (row,) = perplexity_curve(tiny, ids, [200])
    assert row["scaling"] == "yarn:factor=4"  # without scalings, the one that it has
    assert torch.equal(tiny(batch).logits, extended)
    rw.restore(tiny)


def test_an_interrupted_pass_leaves_the_model_as_it_was(tiny, ids):
    before = tiny(torch.tensor([ids])).logits

    def interrupt(_):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        perplexity_curve(tiny, ids, [100], ["linear:factor=3"], on_tokens=interrupt)
    assert torch.equal(tiny(torch.tensor([ids])).logits, before)


def test_a_forward_that_a_hook_put_on_the_body_stays_there(tiny, ids):
    hooked = copy.deepcopy(tiny)
    calls = []
    own = hooked.model.forward

    def forward(*args, **kwargs):
        calls.append(1)
        return own(*args, **kwargs)

    hooked.model.forward = forward
    (row,) = perplexity_curve(hooked, ids, [200])
    assert hooked.model.forward is forward
    assert calls == [1]
    assert row["nll"] == perplexity_curve(tiny, ids, [200])[0]["nll"]


def test_soft_caps_and_logit_scales_of_the_head_are_kept(ids):
    from transformers import Gemma2Config, Gemma2ForCausalLM

    torch.manual_seed(0)
    sizes = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4}
    config = Gemma2Config(
        vocab_size=97,
        head_dim=16,
        num_key_value_heads=2,
        final_logit_softcapping=0.5,
        max_position_embeddings=256,
        **sizes,
    )
    capped = Gemma2ForCausalLM(config).eval()
    (row,) = perplexity_curve(capped, ids, [200])
    assert row["nll"] == pytest.approx(float(whole(capped, ids).mean()), rel=1e-5)


@pytest.mark.parametrize(
    ("lengths", "message"),
    [([], "at least one length"), ([1], "at least 2"), ([300], "the 200 tokens"), ([2.5], "whole numbers")],
)
def test_lengths_that_cannot_be_read(tiny, ids, lengths, message):
    with pytest.raises(rw.InputError, match=message):
        perplexity_curve(tiny, ids, lengths)


def test_the_built_in_model_explodes_past_its_training_and_yarn_holds(model, tokens):
    """The magnitudes of the main job, on the real model, at a length that a test can afford."""
    rows = perplexity_curve(model, tokens, [4096, 12288], ["none", "linear:factor=2", "yarn:factor=2"])
    at = {(row["scaling"], row["length"]): row for row in rows}
    short = at["none", 4096]["ppl"]
    assert 9 < short < 13
    assert at["linear:factor=2", 4096]["ppl"] > 2 * short
    assert at["yarn:factor=2", 4096]["ppl"] < 1.06 * short
    assert at["none", 12288]["ppl_last"] > 2 * at["yarn:factor=2", 12288]["ppl_last"]
    assert at["yarn:factor=2", 12288]["ppl"] < 1.1 * short


def test_the_built_in_model_keeps_its_short_text_and_holds_past_its_training_through_the_cache(model, tokens):
    none, dynamic = (
        perplexity_curve(model, tokens, [8192, 11264], [scaling], chunk=1024) for scaling in ("none", "dynamic-yarn")
    )
    assert dynamic[0]["ppl"] == pytest.approx(none[0]["ppl"], rel=1e-3)
    assert dynamic[1]["ppl_last"] < none[1]["ppl_last"] / 1.5


def test_a_loss_that_is_not_a_number_is_said_and_not_averaged(tiny, ids):
    broken = copy.deepcopy(tiny)
    torch.nn.init.constant_(broken.lm_head.weight, float("nan"))
    with pytest.raises(RuntimeError, match="none: the model's loss at token 1 is not a number"):
        perplexity_curve(broken, ids, [100])
