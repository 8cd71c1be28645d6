from __future__ import annotations

import copy
import dataclasses
import json
import math
import shutil
from dataclasses import dataclass

import pytest
import torch
from tests.helpers.plain_nll import plain_nll

import ropewalk as rw
from ropewalk.compat.transformers import cache_for_call, find_output_cache
from ropewalk.evaluate import curve
from ropewalk.evaluate.curve import CurveRun, group_into_passes, perplexity_curve, plan_points
from ropewalk.evaluate.curve_store import CurveStore
from ropewalk.evaluate.evaluator import Evaluator
from ropewalk.evaluate.key_tokens import KeyTokenRule, find_key_tokens
from ropewalk.evaluate.texts import Text
from ropewalk.models.load import choose_dtype
from ropewalk.scaling.policies import DEFAULT_POLICY


@pytest.mark.parametrize("spec", ["none", "yarn:factor=4", "ntk:factor=2"])
def test_one_pass_gives_every_length_as_a_pass_of_that_length_would(tiny, random_ids, spec):
    rows = perplexity_curve(tiny, random_ids, [10, 64, 150, 200], [spec])
    assert [row["length"] for row in rows] == [10, 64, 150, 200]
    rw.extend(tiny, spec)
    for row in rows:
        nll = plain_nll(tiny, random_ids[: row["length"]])
        assert row["tokens"] == row["length"] - 1
        assert row["nll"] == pytest.approx(nll.mean(), rel=1e-5)
        assert row["ppl"] == pytest.approx(math.exp(nll.mean()), rel=1e-5)
        assert row["ppl_last"] == pytest.approx(math.exp(nll[-1024:].mean()), rel=1e-5)
    rw.restore(tiny)


def test_a_dynamic_scaling_is_measured_with_the_frequencies_of_each_length(tiny, random_ids):
    rows = perplexity_curve(tiny, random_ids, [64, 100, 200], ["dynamic-yarn"])
    for row, factor in zip(rows, (1, 100 / 64, 200 / 64), strict=True):
        (static,) = perplexity_curve(tiny, random_ids, [row["length"]], [rw.YaRN(factor=factor)])
        assert row["ppl"] == pytest.approx(static["ppl"], rel=1e-6)


def test_ppl_last_is_over_the_last_tokens_only(tiny, random_ids, monkeypatch):
    monkeypatch.setattr(curve, "LAST_TOKENS", 20)
    (row,) = perplexity_curve(tiny, random_ids, [200])
    assert row["ppl_last"] == pytest.approx(math.exp(plain_nll(tiny, random_ids)[-20:].mean()), rel=1e-5)


@pytest.mark.parametrize("chunk", [10, 64])
def test_a_static_scaling_has_the_same_losses_in_chunks(tiny, random_ids, chunk):
    in_one_call = perplexity_curve(tiny, random_ids, [64, 200], ["none", "yarn:factor=4"])
    in_chunks = perplexity_curve(tiny, random_ids, [64, 200], ["none", "yarn:factor=4"], chunk=chunk)
    assert [row["nll"] for row in in_chunks] == pytest.approx([row["nll"] for row in in_one_call], rel=1e-5)
    assert {(row["chunk"], row["policy"]) for row in in_chunks} == {(chunk, None)}


@pytest.mark.parametrize("policy", ["stepped", "continuous:every=1"])
def test_a_dynamic_scaling_in_chunks_follows_the_text(tiny, random_ids, policy):
    lengths = [50, 64, 128, 200]
    rows = perplexity_curve(tiny, random_ids, lengths, ["dynamic-yarn"], chunk=16, policy=policy)
    unscaled = perplexity_curve(tiny, random_ids, lengths, ["none"], chunk=16)
    assert [row["nll"] for row in rows[:2]] == [row["nll"] for row in unscaled[:2]]  # within the original 64 tokens
    assert all(row["nll"] != other["nll"] for row, other in zip(rows[2:], unscaled[2:], strict=True))
    with pytest.warns(UserWarning, match="transformers cannot express"):
        rw.extend(tiny, "dynamic-yarn", policy=policy)
    with torch.inference_mode():
        cache, logits = None, []
        for part in torch.tensor([random_ids]).split(16, dim=1):
            outputs = tiny(part, **cache_for_call(tiny, cache))
            cache = find_output_cache(outputs)
            logits.append(outputs.logits[0])
    rw.restore(tiny)
    nll = torch.nn.functional.cross_entropy(torch.cat(logits)[:-1], torch.tensor(random_ids[1:]))
    assert rows[-1]["nll"] == pytest.approx(float(nll), rel=1e-5)
    assert {(row["chunk"], row["policy"]) for row in rows} == {(16, policy)}


def plan_passes(specs, lengths, chunk=None, policy=DEFAULT_POLICY):
    rope = rw.Rope(dim=16, base=10_000.0, original_length=64)
    points = plan_points(rope, [rw.parse(spec) for spec in specs], lengths, [chunk], policy)
    passes = group_into_passes(rope, points)
    return [[(str(point.scaling), point.length) for point in points] for points in passes]


def test_a_dynamic_scaling_in_chunks_needs_one_pass():
    assert len(plan_passes(["dynamic-yarn"], [50, 128, 200], chunk=16)) == 1
    assert len(plan_passes(["dynamic-yarn"], [50, 128, 200])) == 3


def test_the_request_policy_in_chunks_needs_a_pass_for_each_length_past_the_original(tiny, random_ids):
    """It fixes the frequencies for the whole text when the text begins."""
    policy = rw.RequestPolicy(margin=1.25)
    assert len(plan_passes(["dynamic-yarn"], [32, 64, 128, 200], chunk=16, policy=policy)) == 3
    (row,) = perplexity_curve(tiny, random_ids, [128], ["dynamic-yarn"], chunk=16, policy=policy)
    (static,) = perplexity_curve(tiny, random_ids, [128], [rw.YaRN(factor=1.25 * 128 / 64)], chunk=16)
    assert row["nll"] == pytest.approx(static["nll"], rel=1e-6)


def test_points_with_equal_frequencies_share_a_pass():
    unscaled, *others = plan_passes(["none", "linear:factor=2", "dynamic-ntk", "dynamic-yarn"], [32, 64, 128])
    # Within the original 64 tokens the dynamic scalings are the unscaled model.
    assert sorted(unscaled) == [
        ("dynamic-ntk", 32), ("dynamic-ntk", 64), ("dynamic-yarn", 32), ("dynamic-yarn", 64),
        ("none", 32), ("none", 64), ("none", 128),
    ]  # fmt: skip
    assert others == [
        [("linear:factor=2", 32), ("linear:factor=2", 64), ("linear:factor=2", 128)],
        [("dynamic-ntk", 128)],
        [("dynamic-yarn", 128)],
    ]


def test_done_rows_are_not_measured_again(tiny, random_ids):
    counts = []
    done = {("none", None, None, 50), ("none", None, None, 100)}
    rows = perplexity_curve(tiny, random_ids, [50, 100], ["none", "ntk:factor=2"], done=done, on_tokens=counts.append)
    assert [(row["scaling"], row["length"]) for row in rows] == [("ntk:factor=2", 50), ("ntk:factor=2", 100)]
    assert sum(counts) == pytest.approx(100)


def test_progress_counts_every_token_of_every_pass(tiny, random_ids):
    counts = []
    perplexity_curve(tiny, random_ids, [100, 200], ["none", "dynamic-ntk"], on_tokens=counts.append)
    assert len(counts) > 3  # more than one call for each of the three passes
    assert sum(counts) == pytest.approx(200 + 100 + 200)


def test_the_model_is_restored_afterwards(tiny, random_ids):
    batch = torch.tensor([random_ids])
    before = tiny(batch).logits
    perplexity_curve(tiny, random_ids, [100], ["linear:factor=3"])
    assert torch.equal(tiny(batch).logits, before)
    rw.extend(tiny, "yarn:factor=4")
    extended = tiny(batch).logits
    (row,) = perplexity_curve(tiny, random_ids, [200])
    assert row["scaling"] == "yarn:factor=4"  # without scalings, the present one is measured
    assert torch.equal(tiny(batch).logits, extended)
    rw.restore(tiny)


@pytest.mark.parametrize("callback", ["on_tokens", "on_row"])
def test_the_model_is_restored_after_an_interrupt(tiny, random_ids, callback):
    before = tiny(torch.tensor([random_ids])).logits

    def interrupt(_):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt) as error:
        perplexity_curve(tiny, random_ids, [100], ["linear:factor=3"], **{callback: interrupt})
    assert error.tb  # the traceback is alive, so the garbage collector did not restore the model
    assert torch.equal(tiny(torch.tensor([random_ids])).logits, before)


@pytest.mark.parametrize(
    ("lengths", "message"),
    [([], "at least one length"), ([1], "at least 2"), ([300], "the 200 tokens"), ([2.5], "whole numbers")],
)
def test_impossible_lengths_are_refused(tiny, random_ids, lengths, message):
    with pytest.raises(rw.InputError, match=message):
        perplexity_curve(tiny, random_ids, lengths)


def test_a_loss_that_is_not_a_number_is_an_error(tiny, random_ids):
    broken = copy.deepcopy(tiny)
    torch.nn.init.constant_(broken.lm_head.weight, float("nan"))
    with pytest.raises(RuntimeError, match="none: the model's loss at token 1 is not a number"):
        perplexity_curve(broken, random_ids, [100])


@dataclass
class CharacterTokenizer:
    """A tokenizer with a stable repr, which is part of the digest of a loaded model."""

    def __call__(self, text, verbose=True):
        return {"input_ids": [ord(character) % 97 for character in text]}


TEXT = Text("text", "".join(chr(33 + i * i % 89) for i in range(200)))


@pytest.fixture
def make_run(tiny, tmp_path):
    """Return a run in always the same folder."""

    def _make(specs=("none", "dynamic-yarn"), lengths=(64, 150), **options):
        model = options.pop("model", (tiny, CharacterTokenizer()))
        return CurveRun(model, specs, lengths, TEXT, tmp_path / "out", **options)

    return _make


def test_a_run_measures_what_perplexity_curve_measures_and_stores_it(tiny, make_run):
    run = make_run(chunks=[None, 16])
    rows = run.run()
    ids = CharacterTokenizer()(TEXT.content)["input_ids"]
    expected = {
        (row["scaling"], row["chunk"], row["length"]): row["nll"]
        for chunk in (None, 16)
        for row in perplexity_curve(tiny, ids, [64, 150], ["none", "dynamic-yarn"], chunk=chunk)
    }
    assert [(row["scaling"], row["chunk"], row["length"]) for row in rows] == [
        (scaling, chunk, length) for scaling in ("none", "dynamic-yarn") for chunk in (None, 16) for length in (64, 150)
    ]
    assert {(row["scaling"], row["chunk"], row["length"]): row["nll"] for row in rows} == expected
    assert run.original_length == 64
    document = json.loads(run.store.json_path.read_text())
    assert set(document) == {"model", "text", "dtype", "text_sha256", "model_digest", "rows", "short_text"}
    assert len(document["rows"]) == 8


def test_a_run_resumes_where_it_was_interrupted(make_run):
    stored = []

    def interrupt(row):
        stored.append(row)
        if len(stored) == 3:
            raise KeyboardInterrupt

    run = make_run()
    assert run.remaining_tokens() == 150 + 150
    with pytest.raises(KeyboardInterrupt):
        run.run(interrupt)
    again, rows = make_run(), []
    assert again.rows() == sorted(stored, key=lambda row: (row["scaling"] != "none", row["length"]))
    assert again.remaining_tokens() == 150
    assert len(again.run(rows.append)) == 4
    assert len(rows) == 1


def test_a_finished_run_does_not_load_the_model(make_run, tiny_folder, monkeypatch):
    first = make_run(model=str(tiny_folder), lengths=[2, 3], dtype="float32").run()

    def fail(*_, **__):
        raise AssertionError("no row is missing, so the model is not needed")

    monkeypatch.setattr(curve, "load_source", fail)
    run = make_run(model=str(tiny_folder), lengths=[2, 3], dtype="float32")
    assert run.remaining_tokens() == 0
    assert run.run() == first


def test_rows_of_other_scalings_stay_in_the_folder_but_are_not_returned(make_run):
    make_run(["none"], [64]).run()
    rows = make_run(["linear:factor=2"], [64]).run()
    assert [row["scaling"] for row in rows] == ["linear:factor=2"]
    assert len(make_run().store.rows) == 2


def test_another_loaded_model_of_the_same_name_is_refused(make_run, tiny):
    make_run(["none"], [64]).run()
    other = copy.deepcopy(tiny)
    other.lm_head.weight.data += 0.1
    with pytest.raises(rw.InputError, match="another run: model_digest"):
        make_run(model=(other, CharacterTokenizer()))


def test_other_weights_under_the_same_path_are_refused(make_run, tiny, tiny_folder, tmp_path):
    folder = tmp_path / "model"
    shutil.copytree(tiny_folder, folder)
    options = {"model": str(folder), "lengths": [2, 3], "dtype": "float32"}
    rows = make_run(["none"], **options).run()
    assert make_run(["none"], **options).rows() == rows
    other = copy.deepcopy(tiny)
    other.lm_head.weight.data += 0.1
    other.save_pretrained(folder)
    with pytest.raises(rw.InputError, match="another run: model_digest"):
        make_run(["none"], **options)


def test_the_same_weights_under_another_path_go_on(make_run, tiny_folder, tmp_path):
    rows = make_run(["none"], [2, 3], model=str(tiny_folder), dtype="float32").run()
    shutil.copytree(tiny_folder, tmp_path / "copy")
    assert make_run(["none"], [2, 3], model=str(tmp_path / "copy"), dtype="float32").rows() == rows


def test_a_second_run_on_the_folder_is_refused_while_the_first_measures(make_run):
    first, second = make_run(["none"]), make_run(["linear:factor=2"])

    def run_second(_):
        with pytest.raises(rw.InputError, match="to which another process writes"):
            second.run()

    first.run(run_second)
    second.run()
    assert {key.scaling for key in make_run().store.rows} == {"none", "linear:factor=2"}


def test_rows_that_another_run_has_stored_meanwhile_are_not_measured_again(make_run):
    first, second = make_run(["none"]), make_run(["none"])
    rows = first.run()
    assert second.run(pytest.fail) == rows


def test_a_folder_written_before_chunks_existed_still_opens(make_run, tmp_path):
    run = make_run(["none"], [64])
    run.run()
    document = json.loads(run.store.json_path.read_text())
    assert "chunk" not in document["rows"][0]
    assert CurveStore(tmp_path / "out", run.store.header).rows == run.store.rows


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"specs": []}, r"scaling: got \[\]; expected at least one"),
        ({"specs": ["yran"]}, "did you mean yarn"),
        ({"lengths": []}, r"lengths: got \[\]; expected at least one"),
        ({"lengths": [1]}, "lengths: got 1; expected whole numbers of tokens, at least 2"),
        ({"chunks": [0]}, "chunk: got 0"),
        ({"policy": "steped"}, "did you mean stepped"),
    ],
)
def test_wrong_arguments_are_refused_before_the_folder_is_created(make_run, tmp_path, options, message):
    with pytest.raises(rw.InputError, match=message):
        make_run(**options)
    assert not (tmp_path / "out").exists()


def test_a_text_that_is_too_short_is_refused(make_run):
    with pytest.raises(rw.InputError, match="lengths: got 201; expected at most the 200 tokens of the text"):
        make_run(lengths=[64, 201]).run()


def test_the_short_tax_compares_windows_of_the_trained_length(tiny, make_run):
    run = make_run(["dynamic-yarn", "yarn:factor=4"], [100, 150])
    run.run()
    ids = CharacterTokenizer()(TEXT.content)["input_ids"][:64]
    unscaled = plain_nll(tiny, ids)
    with rw.extended(tiny, "yarn:factor=4"):
        scaled = plain_nll(tiny, ids)
    windows = (scaled - unscaled)[:63].reshape(9, 7).mean(1)  # 63 losses in at least 8 windows
    dynamic, yarn = run.short_taxes()
    assert (yarn["scaling"], yarn["tokens"], yarn["windows"]) == ("yarn:factor=4", 64, 9)
    ratio = math.exp(windows.mean())
    assert yarn["percent"] == pytest.approx(100 * (ratio - 1), rel=1e-3)
    assert yarn["standard_error"] == pytest.approx(100 * ratio * windows.std(ddof=1) / 3, rel=1e-3)
    assert yarn["ppl_unscaled"] == pytest.approx(math.exp(unscaled.mean()), rel=1e-5)
    assert yarn["ppl"] == pytest.approx(math.exp(scaled.mean()), rel=1e-5)
    assert (dynamic["percent"], dynamic["standard_error"]) == (0, 0)  # exactly the unscaled model there
    assert {row["scaling"] for row in run.rows()} == {"dynamic-yarn", "yarn:factor=4"}  # none is read, but no row


def test_a_dynamic_scaling_costs_short_text_of_a_model_with_a_scaling_of_its_own(tiny_folder, tmp_path):
    config = json.loads((tiny_folder / "config.json").read_text())
    rope = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64, "rope_theta": 10_000.0}
    folder = shutil.copytree(tiny_folder, tmp_path / "scaled")
    (folder / "config.json").write_text(json.dumps({**config, "rope_parameters": rope, "max_position_embeddings": 256}))
    source = rw.load(str(folder), dtype="float32")[0], CharacterTokenizer()
    run = CurveRun(source, ["dynamic-yarn", "self-extend"], [100], TEXT, tmp_path / "out")
    run.run()
    dynamic, position = run.short_taxes()
    assert dynamic["scaling"] == "dynamic-yarn"
    assert abs(dynamic["percent"]) > 1e-3
    assert position["percent"] == 0


def test_the_short_tax_of_a_folder_without_it_is_measured_later(make_run):
    run = make_run(["none", "yarn:factor=4"], [64])
    run.run()
    document = json.loads(run.store.json_path.read_text())
    del document["short_text"]  # a version without it
    run.store.json_path.write_text(json.dumps(document))
    again = make_run(["none", "yarn:factor=4"], [64])
    assert again.short_taxes() == []
    rows = again.run(pytest.fail)  # no row is missing
    assert rows == run.rows()
    assert again.short_taxes() == run.short_taxes()


RULE = KeyTokenRule(short_context=40, step=16, min_gain=0.002, max_loss=4.6)


def test_longppl_is_over_the_key_tokens_that_the_evaluator_finds_once(tiny, make_run, monkeypatch):
    ids = CharacterTokenizer()(TEXT.content)["input_ids"]
    with rw.extended(tiny, "yarn:factor=4"):
        indices = find_key_tokens(tiny, torch.tensor(ids[:150]), RULE)
    assert len(indices) > 5
    run = make_run(["none"], [64, 150], evaluator="yarn:factor=4", rule=RULE)
    assert run.remaining_tokens() == 150 + RULE.count_tokens(150)
    short, long = run.run()
    assert long["longppl"] == pytest.approx(math.exp(plain_nll(tiny, ids[:150])[indices - 1].mean()), rel=1e-5)
    assert (long["key_tokens"], long["evaluator"]) == (len(indices), "itself under yarn:factor=4")
    assert short["key_tokens"] == (indices < 64).sum()
    monkeypatch.setattr(Evaluator, "find", lambda *_: pytest.fail("the key tokens are stored"))
    again = make_run(["none", "linear:factor=2"], [64, 150], evaluator="yarn:factor=4", rule=RULE)
    assert again.remaining_tokens() == 150
    rows = again.run()
    assert rows[:2] == [short, long]
    assert rows[3]["key_tokens"] == len(indices)


def test_rows_are_measured_again_for_another_evaluator(make_run):
    make_run(["none"], [150]).run()
    (first,) = make_run(["none"], [150], evaluator="yarn:factor=4", rule=RULE).run()
    (second,) = make_run(["none"], [150], evaluator="linear:factor=3", rule=RULE).run()
    assert (first["evaluator"], second["evaluator"]) == ("itself under yarn:factor=4", "itself under linear:factor=3")
    assert first["ppl"] == second["ppl"]
    (kept,) = make_run(["none"], [150]).run(pytest.fail)  # without LongPPL, any row will do
    assert kept == second


def test_rows_are_measured_again_for_another_rule_and_after_a_rule_in_between(make_run):
    other = dataclasses.replace(RULE, max_loss=4.57)
    rows = [make_run(["none"], [150], evaluator="yarn:factor=4", rule=rule).run()[0] for rule in (RULE, other, RULE)]
    assert rows[0]["key_tokens"] != rows[1]["key_tokens"]
    assert (rows[0]["longppl"], rows[0]["key_tokens"]) == (rows[2]["longppl"], rows[2]["key_tokens"])


def test_longppl_needs_a_length_past_the_short_context(make_run):
    with pytest.raises(rw.InputError, match="lengths: got 150; expected with LongPPL, at least one above"):
        make_run(["none"], [64, 150], evaluator="")


def test_on_the_built_in_model_linear_costs_short_text_and_yarn_hardly_does(model, tokens):
    none, linear, yarn, dynamic = perplexity_curve(
        model, tokens, [512], ["none", "linear:factor=2", "yarn:factor=2", "dynamic-yarn"]
    )
    assert 15 < none["ppl"] < 20
    assert linear["ppl"] > 2 * none["ppl"]  # position interpolation needs training
    assert yarn["ppl"] < 1.06 * none["ppl"]
    assert dynamic["ppl"] == none["ppl"]


@pytest.mark.skipif(choose_dtype(None) == "float32", reason="takes minutes on a CPU that cannot compute in bfloat16")
def test_the_built_in_model_degrades_past_its_original_length_and_yarn_does_not(model, tokens):
    lengths = [4096, 8192, 11264, 12288]
    rows = perplexity_curve(model, tokens, lengths, ["none", "yarn:factor=2"], chunk=1024)
    rows += perplexity_curve(model, tokens, [8192, 11264], ["dynamic-yarn"], chunk=1024)
    at = {(row["scaling"], row["length"]): row for row in rows}
    assert at["yarn:factor=2", 4096]["ppl"] < 1.06 * at["none", 4096]["ppl"]
    assert at["yarn:factor=2", 12288]["ppl"] < 1.1 * at["none", 4096]["ppl"]
    assert at["yarn:factor=2", 12288]["ppl_last"] < at["none", 12288]["ppl_last"] / 2
    assert at["dynamic-yarn", 8192]["ppl"] == pytest.approx(at["none", 8192]["ppl"], rel=1e-3)
    assert at["dynamic-yarn", 11264]["ppl_last"] < at["none", 11264]["ppl_last"] / 1.5
