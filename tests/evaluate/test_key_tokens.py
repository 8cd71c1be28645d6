from __future__ import annotations

import copy
import math

import numpy as np
import pytest
import torch
from tests.helpers.plain_nll import plain_nll

import ropewalk as rw
from ropewalk.evaluate.evaluator import choose_evaluator
from ropewalk.evaluate.key_token_store import KeyTokenStore
from ropewalk.evaluate.key_tokens import (
    KeyTokenRule,
    find_key_tokens,
    long_perplexity,
    select_key_tokens,
    translate_key_tokens,
)
from ropewalk.evaluate.perplexity import token_nll
from ropewalk.evaluate.texts import Text


@pytest.fixture(scope="module")
def opinionated(tiny):
    """The tiny model with larger weights, whose predictions depend on the context."""
    model = copy.deepcopy(tiny)
    for weight in model.parameters():
        if weight.ndim == 2:
            weight.data *= 4
    return model


def test_key_tokens_and_longppl_equal_an_independent_computation(opinionated, random_ids):
    rule = KeyTokenRule(short_context=30, step=12, min_gain=0.5, max_loss=5.0)
    is_key, losses = [], []
    for token in range(30, 200):  # every token alone, after its whole context and after its short one
        long = plain_nll(opinionated, random_ids[: token + 1])[-1]
        start = (token - 30) // 12 * 12
        short = plain_nll(opinionated, random_ids[start : token + 1])[-1]
        is_key.append(short - long > 0.5 and long < 5.0)
        losses.append(long)
    expected = 30 + np.flatnonzero(is_key)
    found = find_key_tokens(opinionated, torch.tensor(random_ids), rule)
    assert 5 < len(expected) < 100
    assert found.tolist() == expected.tolist()
    nll = np.concatenate(list(token_nll(opinionated, torch.tensor(random_ids))))
    longppl, count = long_perplexity(nll, found)
    assert count == len(expected)
    assert longppl == pytest.approx(math.exp(np.mean(np.array(losses)[is_key])), rel=1e-6)


def test_with_too_few_key_tokens_those_that_gain_most_are_taken():
    rule = KeyTokenRule(short_context=10)
    long = np.array([0.5, 0.5, 0.5, 0.5, 3.0, 0.5])
    short = np.array([3.0, 1.5, 1.0, 0.4, 9.0, 2.0])  # gains of 2.5, 1.0, 0.5, -0.1, none for a high loss, 1.5
    for at_least, expected in [(0, [10]), (1, [10]), (2, [10, 15]), (3, [10, 11, 15]), (9, [10, 11, 12, 15])]:
        assert select_key_tokens(long, short, rule, at_least).tolist() == expected


def test_the_losses_of_later_tokens_alone_are_those_of_the_whole_text(tiny, random_ids):
    ids_T = torch.tensor(random_ids)
    whole = np.concatenate(list(token_nll(tiny, ids_T)))
    for chunk in (None, 64):
        later = np.concatenate(list(token_nll(tiny, ids_T, chunk=chunk, first=150)))
        assert later == pytest.approx(whole[149:], rel=1e-5)


def test_the_defaults_are_those_of_the_paper():
    assert KeyTokenRule() == KeyTokenRule(short_context=4096, step=1024, min_gain=2.0, max_loss=2.0)
    assert KeyTokenRule.for_length(12_288) == KeyTokenRule()
    assert KeyTokenRule.for_length(3000) == KeyTokenRule(short_context=1000, step=250)


def test_a_text_within_the_short_context_has_no_key_tokens(tiny, random_ids):
    found = find_key_tokens(tiny, torch.tensor(random_ids[:40]), KeyTokenRule(short_context=40))
    assert long_perplexity(np.ones(39), found) == (None, 0)


def test_progress_counts_the_tokens_that_the_evaluator_reads(tiny, random_ids):
    rule, counts = KeyTokenRule(short_context=40, step=16), []
    find_key_tokens(tiny, torch.tensor(random_ids), rule, counts.append)
    assert sum(counts) == pytest.approx(rule.count_tokens(200))
    assert rule.count_tokens(200) == 200 + 10 * 56  # ten short contexts of 40 + 16 tokens end at 200


def test_key_tokens_are_translated_by_their_characters():
    #        the  passkey is  4 2 7      the|pass|key| is|427
    first = [(0, 3), (3, 11), (11, 14), (14, 16), (16, 17), (17, 18)]
    other = [(0, 3), (3, 8), (8, 11), (11, 14), (14, 18), (18, 18)]
    assert translate_key_tokens(np.array([1, 4, 5]), first, other).tolist() == [1, 2]  # 427 is only partly covered
    assert translate_key_tokens(np.array([3, 4, 5]), first, other).tolist() == [4]
    assert translate_key_tokens(np.array([0]), first, other).tolist() == []  # the first token is not predicted


WORDS = " ".join(f"w{i * i % 97}" for i in range(150))


def test_another_model_finds_the_key_tokens_through_its_own_tokenizer(tiny_folder, tiny):
    rule = KeyTokenRule(short_context=40, step=16, min_gain=0.001, max_loss=4.6)
    model, tokenizer = rw.load(str(tiny_folder), dtype="float32")
    ids_T = torch.tensor(tokenizer(WORDS)["input_ids"])
    evaluator = choose_evaluator(str(tiny_folder), (tiny, tokenizer), 120)
    assert evaluator.name == f"{tiny_folder} under yarn:factor=2.5"
    with rw.extended(model, "yarn:factor=2.5"):
        expected = find_key_tokens(model, ids_T[:120], rule)
    assert len(expected) > 3
    found = evaluator.find(tiny, tokenizer, Text("words", WORDS), ids_T, rule, "float32")
    assert found.tolist() == expected.tolist()


@pytest.mark.parametrize(
    ("spec", "name"),
    [
        ("", "itself under yarn:factor=3"),
        ("linear:factor=3", "itself under linear:factor=3"),
        ("dynamic-yarn", "itself under dynamic-yarn at 150 tokens"),
    ],
)
def test_the_model_itself_evaluates_under_the_planned_scaling_or_a_given_one(tiny, spec, name):
    assert choose_evaluator(spec, (tiny, None), 150).name == name


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("yran:factor=2", "evaluator: got 'yran:factor=2'; expected a scaling, or a model .*did you mean yarn"),
        ("yarn:factr=2", "factr"),
    ],
)
def test_an_unknown_evaluator_is_one_line(tiny, spec, message):
    with pytest.raises(rw.InputError, match=message):
        choose_evaluator(spec, (tiny, None), 150)


def test_a_tokenizer_that_does_not_report_characters_is_refused(tiny, tiny_folder):
    evaluator = choose_evaluator(str(tiny_folder), (tiny, None), 120)
    with pytest.raises(rw.InputError, match="evaluator: got 'function'; expected the model itself"):
        evaluator.find(tiny, lambda text: {}, Text("words", WORDS), torch.zeros(150).long(), KeyTokenRule(), "float32")


def test_stored_key_tokens_are_found_for_the_same_evaluator_and_rule_only(tmp_path):
    rule, store = KeyTokenRule(), KeyTokenStore(tmp_path)
    assert store.find("a", "d", rule, 10) is None
    store.add("a", "d", rule, 10, np.array([3, 5]))
    store.add("b", "d", rule, 20, np.array([], np.int64))
    assert store.find("a", "d", rule, 10).tolist() == [3, 5]
    assert store.find("b", "d", rule, 15).tolist() == []
    for other in [
        ("c", "d", rule, 10),
        ("a", "e", rule, 10),
        ("a", "d", KeyTokenRule(step=8), 10),
        ("a", "d", rule, 11),
    ]:
        assert store.find(*other) is None


@pytest.mark.parametrize("content", ["", "{}", "[3]", '[{"evaluator": "a"}]'])
def test_a_damaged_file_of_key_tokens_is_refused(tmp_path, content):
    (tmp_path / "key_tokens.json").write_text(content)
    with pytest.raises(rw.InputError, match=r"^[^\n]*key_tokens.json, which cannot be read[^\n]*$"):
        KeyTokenStore(tmp_path).find("a", "d", KeyTokenRule(), 10)
