"""Plans by measurement: candidates, the rules of the choice, the time, and continuing."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
import torch
from tests.helpers.plain_nll import plain_nll

import ropewalk as rw
from ropewalk.evaluate import measured_plan
from ropewalk.evaluate.key_tokens import KeyTokenRule
from ropewalk.evaluate.measured_plan import MeasuredMethod, list_candidates, measure_plan
from ropewalk.evaluate.paired import PairedDifference, paired_difference
from ropewalk.evaluate.plan_measurements import MeasurementRun, Measurements, Step, select_window
from ropewalk.evaluate.short_tax import compute_short_tax
from ropewalk.evaluate.tasks.passkey import Passkey
from ropewalk.evaluate.texts import Text

WORDS = Text("words", " ".join(f"w{i * i % 97}" for i in range(500)))


@pytest.fixture(scope="module")
def loaded(tiny_folder):
    return rw.load(str(tiny_folder), dtype="float32")


def specs(methods):
    return [str(method) for method in methods]


def test_an_unscaled_model_compares_yarn_and_by_parts_at_four_factors():
    candidates = list_candidates(rw.YaRN(factor=2.5), rw.NoScaling(), 2.0, runtime_methods=False)
    assert specs(candidates) == [
        "yarn:factor=2.5", "yarn:factor=2", "yarn:factor=3", "yarn:factor=4",
        "ntk-by-parts:factor=2.5", "ntk-by-parts:factor=2", "ntk-by-parts:factor=3", "ntk-by-parts:factor=4",
    ]  # fmt: skip


@pytest.mark.parametrize("text", [None, ""])
def test_a_measurement_needs_a_text(loaded, text):
    with pytest.raises(rw.InputError, match=r"text: got .*; expected a text, with --measure"):
        rw.plan(loaded, 128, measure=1, text=text)


def test_methods_that_no_configuration_holds_are_compared_on_request():
    candidates = list_candidates(rw.YaRN(factor=2.5), rw.NoScaling(), 2.0, runtime_methods=True)
    assert {"dynamic-yarn", "leaky-rerope"} < set(specs(candidates))


def test_a_trained_scaling_keeps_its_method_and_its_options():
    trained = rw.Llama3(factor=8, original_length=8192)
    planned = rw.Llama3(factor=20, original_length=8192)
    candidates = list_candidates(planned, trained, 16.0, runtime_methods=True)
    assert specs(candidates) == [f"llama3:original_length=8192,factor={factor}" for factor in (20, 16, 24, 32)]


def test_the_published_scaling_comes_first_and_is_compared_with_larger_factors_and_plain_yarn():
    published = rw.YaRN(factor=4, beta_fast=16, original_length=32_768)
    options = "original_length=32768,beta_fast=16"
    candidates = specs(list_candidates(published, rw.NoScaling(), 131_072 / 32_768, runtime_methods=False))
    assert candidates[:4] == [f"yarn:{options},factor={factor}" for factor in (4, 5, 6, 8)]
    assert "yarn:original_length=32768,factor=5" in candidates


def measured(spec, tax=0.0, passkeys=(True,) * 4, perplexity=3.0):
    short = compute_short_tax(spec, 64, [math.log1p(tax / 100)] * 2, [0.0, 0.0])
    return MeasuredMethod(rw.parse(spec), perplexity, 0.0, None, passkeys, 0.1, short, True)


def test_a_choice_against_the_makers_is_compared_with_theirs():
    methods = (measured("yarn:factor=4"), measured("yarn:factor=2", 2.0, (True, True, False, True), 3.3))
    run = FakeRun({"yarn:factor=4": 1.0, "yarn:factor=2": 1.05}, 30)
    run.run_all()
    shown = measured_plan._explain(run, methods, rw.YaRN(factor=2), True, 1, WORDS)
    assert shown[-1].startswith(
        "its makers publish yarn:factor=2: perplexity 3.300, 3 of 4 passkeys at the target (loss"
    )
    same = measured_plan._explain(run, methods[::-1], rw.YaRN(factor=2), True, 1, WORDS)
    assert same[-1] == "its makers publish the same"


NOISE = np.random.default_rng(0).normal(size=400)  # differences from token to token
PLANNED, OTHER = "yarn:factor=2", "yarn:factor=4"


@pytest.mark.parametrize(
    ("keys", "passkeys", "taxes", "chosen"),
    [
        # The plan stays if the other one is better by no more than the noise, or than 1 %.
        ((0.02, 0.0), (0, 0), (0, 0), PLANNED),
        ((0.20, 0.0), (0, 0), (0, 0), OTHER),
        # Among equals, the cost on short text decides if it differs by more than 0.5 %.
        ((0.0, 0.0), (0, 0), (3.0, 2.6), PLANNED),
        ((0.0, 0.0), (0, 0), (3.0, 1.0), OTHER),
        # A method that is worse at passkeys is out, however low its perplexity and its cost.
        ((0.20, 0.0), (0, 0.5), (3.0, 1.0), PLANNED),
        ((0.0, 0.20), (0.5, 0), (1.0, 3.0), OTHER),
        ((0.20, 0.0), (0, 0.04), (0, 0), OTHER),
    ],
)
def test_the_rules_of_the_choice(keys, passkeys, taxes, chosen):
    names = (PLANNED, OTHER)
    noise = NOISE - NOISE.mean()
    key_losses = {PLANNED: 1.0 + keys[0] + noise, OTHER: 1.0 + keys[1] - 0.3 * noise}
    passkey_losses = {name: [0.1 + more] * 4 for name, more in zip(names, passkeys, strict=True)}
    contenders = measured_plan._without_those_behind_on_passkeys(passkey_losses, dict.fromkeys(names, [True] * 4))
    found = {name: measured(name, tax) for name, tax in zip(names, taxes, strict=True)}
    assert measured_plan._choose(PLANNED, found, key_losses, contenders) == chosen


@pytest.mark.parametrize(
    ("losses", "found", "is_behind"),
    [
        ([3.1, 0.1, 0.1, 0.1], [False, True, True, True], True),  # one is lost: no standard error excuses it
        ([0.2, 0.1, 0.1, 0.1], [False, True, True, True], False),  # lost by so little that the mean is within 0.05
        ([3.1, 0.1, 0.1, 0.1], [True, True, True, True], False),  # none is lost: 0.75 is one standard error
        ([0.4, 0.4, 0.4, 0.41], [True, True, True, True], True),  # all are worse
    ],
)
def test_a_lost_number_counts_without_a_standard_error(losses, found, is_behind):
    passkey_losses = {PLANNED: [0.1] * 4, OTHER: losses}
    contenders = measured_plan._without_those_behind_on_passkeys(passkey_losses, {PLANNED: [True] * 4, OTHER: found})
    assert contenders == ([PLANNED] if is_behind else [PLANNED, OTHER])


def test_few_passkeys_do_not_overrule_the_plan_unless_it_was_dropped():
    found = {name: measured(name) for name in (PLANNED, OTHER)}
    keys = {PLANNED: np.full(9, 2.0), OTHER: np.full(9, 1.0)}
    few = {name: measured(name, passkeys=(True,) * 3) for name in keys}
    assert measured_plan._choose(PLANNED, few, keys, list(keys)) == PLANNED
    assert measured_plan._choose(PLANNED, found, keys, list(keys)) == OTHER
    assert measured_plan._choose(PLANNED, few, {OTHER: keys[OTHER]}, [OTHER]) == OTHER


def test_paired_differences_have_the_standard_error_of_their_mean():
    difference = paired_difference([1.0, 2.0, 4.0], [0.0, 0.0, 0.0])
    expected = np.std([1, 2, 4], ddof=1) / math.sqrt(3)
    assert (difference.mean, difference.count) == (pytest.approx(7 / 3), 3)
    assert difference.standard_error == pytest.approx(expected)
    assert paired_difference([2.0], [1.5]) == PairedDifference(0.5, None, 1)


@pytest.fixture
def two_candidates(monkeypatch):
    candidates = [rw.YaRN(factor=2.5), rw.YaRN(factor=2)]
    monkeypatch.setattr(measured_plan, "list_candidates", lambda *_: candidates)


def test_every_number_of_a_measured_plan_equals_an_independent_one(loaded, two_candidates, monkeypatch):
    model, tokenizer = loaded
    rule = KeyTokenRule(short_context=40, step=10, max_loss=4.6)  # the random model predicts nothing well
    monkeypatch.setattr(KeyTokenRule, "for_length", classmethod(lambda cls, length: rule))
    plan = measure_plan(loaded, 120, 60.0, WORDS)
    ids = tokenizer(WORDS.content)["input_ids"]
    windows = [ids[start : start + 120] for start in (0, 127, 253, 380)]
    short_windows = [ids[start : start + 64] for start in (0, 145, 291, 436)]
    prompts = [
        sample.prompt + tokenizer(f" {sample.references[0]}")["input_ids"]
        for sample in Passkey().make_samples(tokenizer, 112, 8, 0)
    ]
    losses, answers, short = {}, {}, {}
    for spec in ("none", "yarn:factor=2", "yarn:factor=2.5"):
        with rw.extended(model, spec):
            losses[spec] = [plain_nll(model, window)[39:] for window in windows]
            answers[spec] = np.concatenate([plain_nll(model, prompt)[111:] for prompt in prompts])
            short[spec] = np.array([plain_nll(model, window).mean() for window in short_windows])
    key_losses, count = {spec: [] for spec in losses}, 0
    for number, window in enumerate(windows):
        long = np.median([losses[spec][number] for spec in losses if spec != "none"], axis=0)
        # Each token after a short context of 40 to 49 tokens. Fewer than 100 gain 2 nats, so all that gain count.
        starts = [(token - 40) // 10 * 10 for token in range(40, 120)]
        short_context = [plain_nll(model, window[start : token + 1])[-1] for token, start in enumerate(starts, 40)]
        is_key = (short_context - long > 1e-6) & (long < 4.6)
        count += is_key.sum()
        for spec in losses:
            key_losses[spec].append(losses[spec][number][is_key])
    assert 50 < count < 270
    for each in plan.measured:
        spec = str(each.method)
        assert each.perplexity == pytest.approx(math.exp(np.concatenate(key_losses[spec]).mean()), rel=1e-5)
        assert each.passkey_loss == pytest.approx(answers[spec].mean(), rel=1e-5)
        assert each.passkeys == (False,) * 8
        difference = short[spec] - short["none"]
        assert each.short_tax["percent"] == pytest.approx(100 * (math.exp(difference.mean()) - 1), abs=1e-3)
        assert each.short_tax["standard_error"] == pytest.approx(100 * difference.std(ddof=1) / 2, abs=1e-3)
    assert plan.scaling == rw.YaRN(factor=2.5)  # the random model knows no difference: the plan stays
    assert (plan.rope_parameters["factor"], plan.max_position_embeddings) == (2.5, 160)
    assert f"{count} key tokens of 4 windows of 120 tokens of words" in plan.reasons[1]
    assert "0 of 8 passkeys at the target" in plan.reasons[2]
    document = json.loads(json.dumps(plan.to_dict()))
    assert {each["scaling"] for each in document["measured"]} == {"yarn:factor=2", "yarn:factor=2.5"}


def test_rw_plan_measures_and_continues_from_its_folder(loaded, two_candidates, tmp_path, monkeypatch):
    steps = []

    def interrupt(step, value, used):
        steps.append(step)
        if len(steps) == 6:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        measure_plan(loaded, 120, 60.0, WORDS, out=tmp_path, on_step=interrupt)
    measured_steps = list(steps)
    plan = measure_plan(loaded, 120, 60.0, WORDS, out=tmp_path, on_step=lambda step, *_: steps.append(step))
    assert steps[:6] == measured_steps
    assert len(steps) == len(set(steps)) == 4 * (1 + 2 + 3) + 2 * 8  # nothing is measured twice
    monkeypatch.setattr(measured_plan, "load_source", lambda *_: pytest.fail("nothing is missing"))
    assert rw.plan(loaded, 120, measure=60.0, text=WORDS, out=tmp_path) == plan


def test_other_targets_may_share_the_folder(loaded, two_candidates, tmp_path):
    for target in (120, 140):
        measure_plan(loaded, target, 1e-9, WORDS, out=tmp_path)
    assert len(list(tmp_path.glob("plan-*.json"))) == 2


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"steps": [3]}', '{"steps": []}'])
def test_a_damaged_file_of_measurements_is_refused(tmp_path, content):
    path = tmp_path / "plan.json"
    path.write_text(content)
    with pytest.raises(rw.InputError, match=r"^out: got [^\n]*plan.json, which [^\n]*$"):
        Measurements({"target": 128}, path)


class FakeRun(MeasurementRun):
    """Steps that take a second each, with a loss for each method on every token."""

    def __init__(self, losses, seconds):
        methods = [rw.parse(spec) for spec in losses]
        super().__init__(
            methods, rw.NoScaling(), Measurements({}, None), target=120, original_length=64, seconds=seconds
        )
        self.losses = losses

    def run_all(self):
        while (step := self.next_step()) is not None:
            value = {
                "target": np.full(80, self.losses.get(step.method, 0.0)),
                "context": np.full(80, 9.0),
                "passkey": [0.1, 0.1],
                "short": 1.0,
            }[step.kind]
            self.results.add(step, value, 1.0)
        return self.results.values


def test_the_time_is_kept_and_the_comparison_is_fair():
    losses = {f"yarn:factor={factor}": 1.0 for factor in (2, 2.5, 3, 4)}
    for seconds in range(1, 80):
        run = FakeRun(losses, seconds)
        steps = run.run_all()
        assert len(steps) <= seconds
        counts = {name: sum(step.kind == "target" and step.method == name for step in steps) for name in losses}
        assert len(run.compared("target")) == min(counts[name] for name in run.remaining_methods() or losses)
    assert {step.number for step in steps if step.kind == "passkey"} == set(range(8))


def test_a_slow_machine_compares_three_methods_and_asks_for_passkeys():
    steps = FakeRun({f"yarn:factor={factor}": 1.0 for factor in (2, 2.5, 3, 4, 5, 6)}, 10).run_all()
    assert [step.method for step in steps if step.kind == "target"] == [f"yarn:factor={f}" for f in (2, 2.5, 3, 4)]
    assert sum(step.kind == "passkey" for step in steps) == 5


def test_methods_far_behind_on_the_first_window_are_dropped():
    run = FakeRun({"yarn:factor=2": 1.0, "yarn:factor=2.5": 1.05, "yarn:factor=4": 1.2}, 1000)
    steps = run.run_all()
    assert run.remaining_methods() == ["yarn:factor=2", "yarn:factor=2.5"]
    assert [step for step in steps if step.method == "yarn:factor=4"] == [Step("target", "yarn:factor=4", 0)]


def test_the_measurement_ends_when_one_method_remains():
    run = FakeRun({"yarn:factor=2": 1.0, "yarn:factor=2.5": 1.2, "yarn:factor=4": 1.3}, 1000)
    steps = run.run_all()
    assert {step.number for step in steps if step.kind == "passkey"} == {0, 2, 4, 6}
    assert {step.kind for step in steps} == {"context", "target", "passkey", "short"}
    assert {step.number for step in steps if step.kind != "passkey"} == {0}


def test_windows_are_spread_from_the_beginning_to_the_end():
    starts = [int(select_window(torch.arange(300), 120, index, 4)[0]) for index in range(4)]
    assert starts == [0, 60, 120, 180]


def test_a_text_shorter_than_four_windows_is_not_counted_several_times(loaded, two_candidates, tmp_path, monkeypatch):
    text, steps = Text("short", " ".join(WORDS.content.split()[:250])), []
    plan = measure_plan(loaded, 120, 60.0, text, out=tmp_path, on_step=lambda step, *_: steps.append(step))
    assert {step.number for step in steps if step.kind in ("context", "target")} == {0, 1}
    assert {step.number for step in steps if step.kind == "passkey"} == set(range(8))
    assert "key tokens of 2 windows of 120 tokens" in plan.reasons[1]
    monkeypatch.setattr(measured_plan, "load_source", lambda *_: pytest.fail("nothing is missing"))
    assert rw.plan(loaded, 120, measure=60.0, text=text, out=tmp_path) == plan


def test_few_passkeys_are_named_only_where_they_keep_the_plan():
    few = (measured("yarn:factor=2", passkeys=(True,)), measured("yarn:factor=4", passkeys=(True,), perplexity=2.0))
    run = FakeRun({"yarn:factor=2": 1.05, "yarn:factor=4": 1.0}, 30)
    run.run_all()
    kept = measured_plan._explain(run, few, rw.YaRN(factor=2), False, 1, WORDS)
    assert "1 passkeys are too few to overrule the plan: give it more minutes" in kept
    assert not any("as good within the error" in reason for reason in kept)
    dropped = measured_plan._explain(run, few, rw.YaRN(factor=3), False, 1, WORDS)
    assert not any("too few" in reason for reason in dropped)


def test_a_plan_that_needs_nothing_measures_nothing(loaded):
    assert rw.plan(loaded, 60, measure=1, text=WORDS) == rw.plan(loaded[0], 60)


def test_too_little_time_leaves_the_plan_as_it_is(loaded, monkeypatch):
    plan = measure_plan(loaded, 120, 1e-9, WORDS)  # the step that has begun, the key tokens, is finished
    assert plan.scaling == rw.plan(loaded[0], 120).scaling
    assert "too short to measure a single method" in plan.reasons[-1]


def test_a_chosen_method_that_no_configuration_holds_is_named(loaded, monkeypatch):
    monkeypatch.setattr(measured_plan, "list_candidates", lambda *_: [rw.LeakyReRoPE()])
    plan = measure_plan(loaded, 120, 60.0, WORDS, runtime_methods=True)
    assert (plan.method, plan.scaling) == (rw.LeakyReRoPE(), rw.YaRN(factor=2.5))
    assert plan.measured[0].short_tax["percent"] == 0
    assert "no configuration can hold leaky-rerope" in plan.reasons[-1]


def test_only_methods_that_a_configuration_holds_are_measured(loaded, monkeypatch):
    monkeypatch.setattr(measured_plan, "list_candidates", lambda *_: [rw.YaRN(factor=2.5), rw.LeakyReRoPE()])
    steps = []
    plan = measure_plan(loaded, 120, 60.0, WORDS, on_step=lambda step, *_: steps.append(step))
    assert {step.method for step in steps} == {"yarn:factor=2.5", "none"}
    assert plan.method == rw.YaRN(factor=2.5)


def test_how_far_a_method_is_behind_has_its_standard_error():
    run = FakeRun({"yarn:factor=2": 1.0, "yarn:factor=4": 1.05, "linear:factor=2": 1.5}, 1000)
    run.run_all()
    run.results.values[Step("target", "yarn:factor=4", 1)][:] = 1.01  # a quarter of the tokens
    first, second, third = measured_plan.rank_methods(run)
    assert (str(first.method), first.behind, third.remained, third.passkeys) == ("yarn:factor=2", 0, False, ())
    assert second.behind == pytest.approx(100 * (math.exp(0.04) - 1))
    deviation = np.std(np.repeat([0.05, 0.01, 0.05, 0.05], 80), ddof=1)
    assert second.behind_error == pytest.approx(100 * math.exp(0.04) * deviation / math.sqrt(320), rel=1e-3)
    assert third.behind == pytest.approx(100 * (math.exp(0.5) - 1))


def test_all_methods_together_find_the_key_tokens():
    run = FakeRun({"yarn:factor=2": 1.0, "yarn:factor=2.5": 1.0, "yarn:factor=4": 1.0}, 1000)
    values = run.results.values
    context = np.full(80, 5.0)
    context[:40] = 1.5  # the short context is as good
    values[Step("context", str(run.context_reader), 0)] = context
    for number, name in enumerate(run.methods):
        losses = np.full(80, 1.5)
        losses[50 + number] = 0.1  # a token that it alone predicts well is no reason to compare on it
        losses[60:] = 3.0  # no method predicts these well
        values[Step("target", name, 0)] = losses
    values[Step("target", "yarn:factor=4", 0)][10] = 0.0
    key_losses = run.key_losses(0)
    assert {name: len(losses) for name, losses in key_losses.items()} == dict.fromkeys(run.methods, 20)
    assert {round(float(losses.mean()), 4) for losses in key_losses.values()} == {round((19 * 1.5 + 0.1) / 20, 4)}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"measure": 0, "text": WORDS}, "measure: got 0; expected a finite number above 0"),
        ({"measure": 1, "text": Text("short", "w1 w2")}, "text: got 'short'; expected a text of at least 120 tokens"),
        ({"text": WORDS}, "text: got .* expected minutes to measure beside it"),
    ],
)
def test_wrong_arguments_are_one_line(loaded, arguments, message):
    with pytest.raises(rw.InputError, match=message):
        rw.plan(loaded, 120, **arguments)
