from __future__ import annotations

import random
from dataclasses import replace

import numpy as np
import pytest
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from ropewalk.errors import InputError
from ropewalk.tuning.retrieval_prompts import FactPlanter
from ropewalk.tuning.windows import choose_window_tokens, sample_window

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


def test_the_window_is_the_target_or_shorter_on_a_cpu(job):
    long_job = replace(job, target=32_768)
    assert choose_window_tokens(job, None) == job.target
    assert choose_window_tokens(long_job, None) == 3072
    assert choose_window_tokens(long_job, 5000) == 5000
    with pytest.raises(InputError, match="window: got 193; expected at most the target, 192 tokens"):
        choose_window_tokens(job, 193)
