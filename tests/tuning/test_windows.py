from __future__ import annotations

import random
from dataclasses import replace

import numpy as np
import pytest
import torch
from tests.helpers.architectures import build, relative_difference
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from ropewalk.errors import InputError
from ropewalk.models.attention_bias import attention_biases, find_attention_layers
from ropewalk.tuning import windows
from ropewalk.tuning.retrieval_prompts import FactPlanter
from ropewalk.tuning.windows import Window, choose_window_tokens, find_biased_layers, sample_window

TARGET = 1000
WORDS = 4000


@pytest.fixture(scope="module")
def planter():
    tokenizer = Tokenizer(models.WordLevel({f"w{i}": i for i in range(WORDS)}, unk_token="w0"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    return FactPlanter(PreTrainedTokenizerFast(tokenizer_object=tokenizer))


@pytest.mark.parametrize("seed", range(5))
def test_a_full_window_is_one_piece_of_the_text(planter, seed):
    window = sample_window(np.arange(1, 3000), TARGET, TARGET, planter, 4, random.Random(seed))
    assert (window.positions_T == np.arange(TARGET)).all()
    assert set(np.diff(window.ids_T[window.is_text_T])) == {1}


@pytest.mark.parametrize("seed", range(5))
def test_a_short_window_has_parts_of_the_text_at_their_positions(planter, seed):
    document_N = np.random.default_rng(0).permutation(WORDS)  # each token id occurs once
    window = sample_window(document_N, TARGET, 300, planter, 3, random.Random(seed))
    steps = np.diff(window.positions_T)
    assert len(window.ids_T) == 300
    assert (window.positions_T[0], window.positions_T[-1]) == (0, TARGET - 1)
    assert (steps >= 1).all()
    assert 1 <= (steps > 1).sum() <= 4
    source_T = np.argsort(document_N)[window.ids_T[window.is_text_T]]
    # The facts before a token shift it, and nothing else does: the jumps are those of the text.
    planted_before_T = np.cumsum(~window.is_text_T)[window.is_text_T]
    assert len(set(window.positions_T[window.is_text_T] - source_T - planted_before_T)) == 1


@pytest.fixture
def hand_made():
    """Three parts of 200, 200 and 100 tokens, with two planted facts and an answer at the end."""
    positions_T = np.concatenate([np.arange(200), 1000 + np.arange(200), 5000 + np.arange(100)])
    is_text_T = np.ones(500, dtype=bool)
    is_text_T[[50, 51, 300, 498, 499]] = False
    return Window(np.arange(500), positions_T, is_text_T, np.arange(500) == 499)


def test_each_sampled_key_counts_as_often_as_the_tokens_that_it_stands_for(hand_made):
    bias_TT = torch.from_numpy(hand_made.compute_bias()).double()
    index_T = torch.arange(500)
    is_later_TT = index_T > index_T[:, None]
    assert (bias_TT[is_later_TT] == -torch.inf).all()
    weights_TT = bias_TT.exp()
    assert (weights_TT[:200, :200][~is_later_TT[:200, :200]] == 1).all()
    # Part 2: of 1,000 tokens before it, 4 first ones and 2 planted ones stand for themselves, 194 for 994.
    assert torch.allclose(weights_TT[399, [4, 49, 52, 199]], torch.full((4,), 994 / 194).double(), rtol=1e-6)
    assert (weights_TT[399, [0, 3, 50, 51, 200, 300, 399]] == 1).all()
    # Part 3: of 5,000 tokens before it, 7 stand for themselves, 393 for 4,993.
    assert torch.allclose(weights_TT[400, [4, 199, 200, 399]], torch.full((4,), 4993 / 393).double(), rtol=1e-6)
    assert (weights_TT[499, [0, 50, 300, 400, 498, 499]] == 1).all()
    assert torch.allclose(weights_TT.sum(1), torch.from_numpy(hand_made.positions_T + 1).double(), rtol=1e-6)


def test_a_short_window_of_equal_tokens_gives_the_logits_of_the_whole_text(hand_made):
    model = build("llama", num_hidden_layers=1).double()
    ids_T = torch.cat([torch.arange(10, 14), torch.full((5096,), 20)])
    ids_T[[50, 51, 1100]] = torch.tensor([30, 31, 32])  # the planted tokens

    def logits_of(ids_T):
        unrotated = torch.zeros_like(ids_T)  # so that equal tokens have equal keys
        with torch.no_grad():
            return model(ids_T[None], position_ids=unrotated[None], attention_mask=torch.ones(1, len(ids_T))).logits[0]

    positions_T = torch.from_numpy(hand_made.positions_T)
    expected = logits_of(ids_T)[positions_T]
    assert relative_difference(logits_of(ids_T[positions_T]), expected) > 1e-2
    layers = find_attention_layers(model, 5100)
    with attention_biases(hand_made.layer_biases(layers, model.device, model.dtype)):
        assert relative_difference(logits_of(ids_T[positions_T]), expected) < 1e-5


def test_text_just_after_a_jump_does_not_count(hand_made, monkeypatch):
    expected_T = hand_made.is_text_T.copy()
    expected_T[200:300] = expected_T[400:450] = False  # half of a part
    assert (hand_made.find_counted_tokens() == expected_T).all()
    monkeypatch.setattr(windows, "_NEAR_PAST", 30)
    expected_T = hand_made.is_text_T.copy()
    expected_T[200:230] = expected_T[400:430] = False
    assert (hand_made.find_counted_tokens() == expected_T).all()


def test_a_layer_with_a_sliding_window_sees_keys_by_their_positions(hand_made):
    bias_TT = hand_made.compute_bias(sliding_window=850)
    assert set(bias_TT.ravel()) == {0, -np.inf}
    assert (np.flatnonzero(bias_TT[210] == 0) == [*range(161, 211)]).all()  # at 1010, 850 tokens: from 161 on
    assert (np.flatnonzero(bias_TT[450] == 0) == [*range(400, 451)]).all()


def test_each_layer_gets_the_bias_for_what_it_sees(hand_made):
    biases = hand_made.layer_biases({"a": None, "b": 850, "c": None}, torch.device("cpu"), torch.bfloat16)
    assert biases["a"] is biases["c"]
    for layer, sliding_window in (("a", None), ("b", 850)):
        assert torch.equal(biases[layer], torch.from_numpy(hand_made.compute_bias(sliding_window)).bfloat16())


@pytest.mark.parametrize("seed", range(5))
def test_the_keys_of_a_sampled_window_stand_for_all_tokens_before_the_query(planter, seed):
    window = sample_window(np.arange(1, 3000), TARGET, 300, planter, 3, random.Random(seed))
    weights_TT = torch.from_numpy(window.compute_bias()).double().exp()
    assert torch.allclose(weights_TT.sum(1), torch.from_numpy(window.positions_T + 1).double(), rtol=1e-6)


def test_a_window_without_jumps_needs_no_bias(planter, job):
    window = sample_window(np.arange(1, 3000), TARGET, TARGET, planter, 4, random.Random(0))
    assert window.layer_biases({"a": None}, torch.device("cpu"), torch.float32) == {}
    assert (window.find_counted_tokens() == window.is_text_T).all()
    assert find_biased_layers(job, job.target) == {}
    assert find_biased_layers(job, job.target - 1) == dict.fromkeys(job.model.model.layers)


def test_the_window_is_the_target_or_shorter_on_a_cpu(job):
    long_job = replace(job, target=32_768)
    assert choose_window_tokens(job, None) == job.target
    assert choose_window_tokens(long_job, None) == 3072
    assert choose_window_tokens(long_job, 5000) == 5000
    with pytest.raises(InputError, match="window: got 193; expected at most the target, 192 tokens"):
        choose_window_tokens(job, 193)
