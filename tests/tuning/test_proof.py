from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from tests.helpers.harness_tasks import character_tokenizer
from tests.helpers.plain_nll import plain_nll

import ropewalk as rw
from ropewalk.evaluate.native_window import native_window_nll
from ropewalk.tuning import proof as proofs
from ropewalk.tuning.proof import Proof, ProofRun, Retrieval, sign_test

TARGET = 448  # seven times the original length of the tiny model, and enough characters for a passkey
TUNED, FORMULAS = rw.YaRN(factor=7, beta_fast=8), ["yarn:factor=7", "linear:factor=7"]


@pytest.fixture(scope="module")
def text_file(tmp_path_factory):
    path = tmp_path_factory.mktemp("texts") / "held_out.txt"
    path.write_text("The rope is long. It was laid in the walk by the sea. " * 12)
    return str(path)


@pytest.fixture(scope="module")
def source(tiny):
    return tiny, character_tokenizer()


def start_run(source, text_file, folder, **options):
    return ProofRun(source, TUNED, TARGET, [text_file], folder, formulas=FORMULAS, samples=2, **options)


@pytest.fixture(scope="module")
def finished(source, text_file, tmp_path_factory):
    """The folder of a finished run and its proof."""
    folder = tmp_path_factory.mktemp("proof")
    return folder, start_run(source, text_file, folder).run()


@pytest.mark.parametrize("scaling", ["none", str(TUNED), *FORMULAS])
def test_perplexities_by_bucket_are_those_of_a_plain_forward_call(source, text_file, finished, scaling):
    model, tokenizer = source
    ids = tokenizer(Path(text_file).read_text())["input_ids"][:TARGET]
    with rw.extended(model, scaling):
        nll = plain_nll(model, ids)
    assert finished[1].ends == [64, 128, 192, 256, 320, 384, 448]
    expected = [np.exp(nll[max(end - 65, 0) : end - 1].mean()) for end in finished[1].ends]
    assert np.allclose(finished[1].perplexities[text_file][scaling], expected, rtol=1e-5)


def test_the_native_window_is_the_unscaled_model_that_reads_its_last_tokens_again(source, text_file, finished):
    model, tokenizer = source
    nll = native_window_nll(model, torch.tensor(tokenizer(Path(text_file).read_text())["input_ids"][:TARGET]), 64)
    expected = [np.exp(nll[max(end - 65, 0) : end - 1].mean()) for end in finished[1].ends]
    assert np.allclose(finished[1].perplexities[text_file]["native-window"], expected)


def test_the_best_formula_has_the_lowest_loss_past_the_original_length(text_file, finished):
    nll = {
        formula: np.log(perplexities[1:]).mean()
        for formula, perplexities in finished[1].perplexities[text_file].items()
        if formula in FORMULAS
    }
    assert finished[1].best_formula == min(nll, key=nll.get)


def test_passkey_and_needle_are_answered_by_the_tuned_scaling_the_best_formula_and_the_unscaled_model(finished):
    cells = {(each.task, each.length, each.scaling) for each in finished[1].retrieval}
    scalings = (str(TUNED), finished[1].best_formula, "none")
    assert cells == {(task, n, name) for task in ("passkey", "needle") for n in (224, 448) for name in scalings}
    assert all(each.depths == [0.0, 1.0] and set(each.found) <= {0.0, 1.0} for each in finished[1].retrieval)


def test_a_finished_run_reads_nothing_again(source, text_file, finished, monkeypatch):
    folder, proof = finished
    monkeypatch.setattr(proofs, "native_window_nll", None)
    monkeypatch.setattr("ropewalk.evaluate.curve.token_nll", None)
    monkeypatch.setattr("ropewalk.evaluate.text_generator.TextGenerator.generate", None)
    again = start_run(source, text_file, folder)
    assert again.remaining_tokens() == 0
    assert again.run() == proof
    assert json.loads((folder / "proof.json").read_text()) == json.loads(json.dumps(proof.to_dict()))


def test_an_interrupted_run_continues_with_what_is_missing(source, text_file, finished, tmp_path, monkeypatch):
    def interrupt(*args, **kwargs):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(proofs, "native_window_nll", interrupt)
        with pytest.raises(KeyboardInterrupt):
            start_run(source, text_file, tmp_path).run()
    counts = []
    monkeypatch.setattr("ropewalk.evaluate.curve.token_nll", None)  # the scalings have been measured
    run = start_run(source, text_file, tmp_path)
    remaining = run.remaining_tokens()
    assert run.run(lambda tokens, label: counts.append(tokens)) == finished[1]
    assert sum(counts) == pytest.approx(remaining)


def test_another_tuned_scaling_in_the_same_folder_reads_the_texts_once(source, text_file, finished):
    run = ProofRun(source, "ntk:factor=7", TARGET, [text_file], finished[0], formulas=FORMULAS, samples=2)
    assert run.remaining_tokens() == TARGET + 3 * 2 * 2 * (224 + 448)  # the best formula may be another


def test_a_scaling_with_a_set_for_each_layer_is_proved(source, text_file, finished):
    pairs = source[0].config.head_dim // 2
    tuned = rw.Learned(divisors=((1.0,) * pairs, (7.0,) * pairs), attention_factor=(1.0, 1.1), original_length=64)
    proof = ProofRun(source, tuned, TARGET, [text_file], finished[0], formulas=FORMULAS, samples=2).run()
    ids = source[1](Path(text_file).read_text())["input_ids"][:TARGET]
    with rw.extended(source[0], tuned):
        nll = plain_nll(source[0], ids)
    assert proof.perplexities[text_file][proof.tuned][0] == pytest.approx(np.exp(nll[:63].mean()), rel=1e-5)
    assert {each.scaling for each in proof.retrieval} == {proof.tuned, proof.best_formula, "none"}


@pytest.mark.parametrize(
    ("original_length", "target", "ends"),
    [
        (8192, 32_768, [8192, 16_384, 24_576, 32_768]),
        (8192, 20_000, [8192, 16_384, 20_000]),
        (8192, 8193, [8192, 8193]),
        (4096, 131_072, [4096, 24_576, 45_056, 65_536, 86_016, 106_496, 126_976, 131_072]),
    ],
)
def test_buckets_begin_with_the_original_length_and_are_at_most_eight(original_length, target, ends):
    assert proofs.bucket_ends(original_length, target) == ends


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"target": 64}, "target: got 64; expected more than the original length of the model, 64"),
        ({"texts": []}, "text: got []; expected at least one text"),
        ({"tuned": "dynamic-yarn"}, "scaling: got 'dynamic-yarn'; expected a static one"),
    ],
)
def test_a_wrong_argument_is_refused(source, text_file, tmp_path, change, message):
    options = {"source": source, "tuned": TUNED, "target": TARGET, "texts": [text_file], "out": tmp_path, **change}
    with pytest.raises(rw.InputError) as error:
        ProofRun(**options)
    assert message in str(error.value)


def test_a_text_shorter_than_the_target_is_refused(source, text_file, tmp_path):
    with pytest.raises(rw.InputError, match=r"text: got '.*, 648 tokens'; expected at least the target, 4,096 tokens"):
        ProofRun(source, TUNED, 4096, [text_file], tmp_path)


# Two texts, buckets of 8, 8 and 16 tokens. The tuned scaling has perplexities 4 and 9 past 8 tokens, a mean of 6; the
# formula has 8 and 8.
HAND_MADE = Proof(
    model="model",
    dtype="float32",
    original_length=8,
    tuned="learned",
    best_formula="yarn:factor=4",
    ends=[8, 16, 32],
    perplexities={
        "one.txt": {"learned": [5.0, 4.0, 4.0], "yarn:factor=4": [5.001, 8.0, 8.0]},
        "two.txt": {"learned": [5.0, 9.0, 9.0], "yarn:factor=4": [5.001, 8.0, 8.0]},
    },
    retrieval=[
        Retrieval("passkey", 32, "learned", [1.0, 0.0], [0.0, 1.0]),
        Retrieval("passkey", 32, "yarn:factor=4", [1.0, 0.0], [0.0, 1.0]),
    ],
)


def with_found(learned, formula):
    return dataclasses.replace(
        HAND_MADE,
        retrieval=[
            Retrieval("needle", 32, "learned", learned, [0.5] * len(learned)),
            Retrieval("needle", 32, "yarn:factor=4", formula, [0.5] * len(formula)),
        ],
    )


def swapped(proof):
    """The proof in which the tuned scaling has the numbers of the formula, and the formula those of the tuned one."""
    return dataclasses.replace(proof, tuned=proof.best_formula, best_formula=proof.tuned)


def test_the_sentence_says_when_the_tuned_scaling_is_better():
    assert HAND_MADE.sentence == (
        "The tuned scaling is better than yarn:factor=4, the formula with the lowest perplexity, in perplexity past 8 "
        "tokens (6.00 against 8.00). No clear difference in perplexity up to 8 tokens (5.00 against 5.00) and passkey "
        "(1 against 1 of 2 found)."
    )


def test_the_sentence_says_when_the_formula_is_better():
    assert swapped(HAND_MADE).sentence == (
        "Use learned, the formula with the lowest perplexity: the tuned scaling is worse in perplexity past 8 tokens "
        "(8.00 against 6.00). No clear difference in perplexity up to 8 tokens (5.00 against 5.00) and passkey (1 "
        "against 1 of 2 found)."
    )


def test_the_sentence_names_both_sides_of_a_trade():
    assert with_found([0.0] * 6, [1.0] * 6).sentence == (
        "Against yarn:factor=4, the formula with the lowest perplexity, the tuned scaling is better in perplexity past "
        "8 tokens (6.00 against 8.00), but worse in needle (0 against 6 of 6 found). No clear difference in perplexity "
        "up to 8 tokens (5.00 against 5.00)."
    )
    better = with_found([1.0] * 6, [0.0] * 6).sentence
    assert "in perplexity past 8 tokens (6.00 against 8.00) and needle (6 against 0 of 6 found). No" in better


def test_a_difference_that_chance_would_make_is_not_called_one():
    assert with_found([0.0] * 5, [1.0] * 5).sentence.endswith("and needle (0 against 5 of 5 found).")
    assert sign_test(5, 0) == sign_test(0, 5) == 2 / 32
    assert sign_test(8, 1) == pytest.approx(2 * (1 + 9) / 2**9)
    assert sign_test(3, 3) == sign_test(0, 0) == 1


def test_a_worse_perplexity_of_short_text_counts():
    perplexities = {text: {**rows, "learned": [5.5, 4.0, 4.0]} for text, rows in HAND_MADE.perplexities.items()}
    sentence = dataclasses.replace(HAND_MADE, perplexities=perplexities).sentence
    assert "better in perplexity past 8 tokens (4.00 against 8.00), but worse in perplexity up to 8 tokens" in sentence


def test_equal_numbers_are_called_equal():
    same = dataclasses.replace(HAND_MADE, tuned="yarn:factor=4")
    assert same.sentence.startswith(
        "The tuned scaling is as good as yarn:factor=4, the formula with the lowest perplexity. No clear difference in"
    )
