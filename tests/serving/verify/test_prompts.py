from __future__ import annotations

import itertools

import pytest

from ropewalk import InputError
from ropewalk.serving.verify.prompts import prompts_of

TEXT = [7 * i % 1000 for i in range(20_000)]


def test_depths_grow_from_well_within_the_original_length_to_the_end():
    prompts = prompts_of(TEXT, 12_000, 8192)
    assert list(prompts.depths) == sorted(set(prompts.depths))
    assert len(prompts.depths) == 24
    assert prompts.depths[-1] == 12_000
    assert sum(depth > 8192 for depth in prompts.depths) == 18
    assert prompts.depths[0] < 1000


def test_each_prompt_continues_the_one_before():
    prompts = prompts_of(TEXT, 12_000, 8192)
    grown = prompts.all[len(prompts.alone) :]
    assert [len(prompt) for prompt in grown] == list(prompts.depths)
    for shorter, longer in itertools.pairwise(grown):
        assert longer[: len(shorter)] == shorter


def test_begun_anew_past_the_original_length():
    prompts = prompts_of(TEXT, 12_000, 8192, anew=True)
    lengths = [len(prompt) for prompt in prompts.all]
    first_alone = lengths.index(1)
    assert lengths[first_alone - 1] <= 8192 < lengths[first_alone + len(prompts.alone)]


@pytest.mark.parametrize("anew", [False, True])
def test_answers_find_their_prompts(anew):
    prompts = prompts_of(TEXT, 12_000, 8192, anew=anew)
    at_depth, alone = prompts.split(prompts.all)
    assert [len(prompt) for prompt in at_depth] == list(prompts.depths)
    assert [tuple(prompt) for prompt in alone] == [(token,) for token in prompts.alone]
    assert len(set(prompts.alone)) == 24


@pytest.mark.parametrize(("length", "original"), [(64, None), (100, 8192), (48, 48), (1000, 990)])
def test_short_texts(length, original):
    prompts = prompts_of(TEXT, length, original)
    assert prompts.depths[0] >= 2
    assert prompts.depths[-1] == length


@pytest.mark.parametrize(("length", "ids"), [(47, TEXT), (30_000, TEXT)])
def test_refused(length, ids):
    with pytest.raises(InputError, match="length"):
        prompts_of(ids, length, 8192)
