from __future__ import annotations

import itertools

import pytest

from ropewalk import InputError
from ropewalk.serving.verify.prompts import build_prompts

TEXT = [7 * i % 1000 for i in range(20_000)]


def test_a_quarter_of_the_depths_is_within_the_original_length():
    prompts = build_prompts(TEXT, 12_000, 8192)
    assert list(prompts.depths) == sorted(set(prompts.depths))
    assert len(prompts.depths) == 24
    assert prompts.depths[-1] == 12_000
    assert sum(depth > 8192 for depth in prompts.depths) == 18
    assert prompts.depths[0] < 1000


def test_each_prefix_continues_the_previous_one():
    prompts = build_prompts(TEXT, 12_000, 8192)
    prefixes = prompts.in_order[len(prompts.single_tokens) :]
    assert [len(prefix) for prefix in prefixes] == list(prompts.depths)
    for shorter, longer in itertools.pairwise(prefixes):
        assert longer[: len(shorter)] == shorter


def test_restart_puts_the_single_tokens_at_the_original_length():
    prompts = build_prompts(TEXT, 12_000, 8192, restart_past_original=True)
    lengths = [len(prompt) for prompt in prompts.in_order]
    first_single = lengths.index(1)
    assert lengths[first_single - 1] <= 8192 < lengths[first_single + len(prompts.single_tokens)]


@pytest.mark.parametrize("restart", [False, True])
def test_split_assigns_outputs_to_depths_and_single_tokens(restart):
    prompts = build_prompts(TEXT, 12_000, 8192, restart_past_original=restart)
    at_depths, single = prompts.split(prompts.in_order)
    assert [len(prompt) for prompt in at_depths] == list(prompts.depths)
    assert [tuple(prompt) for prompt in single] == [(token,) for token in prompts.single_tokens]
    assert len(set(prompts.single_tokens)) == 24


@pytest.mark.parametrize(("length", "original"), [(64, None), (100, 8192), (48, 48), (1000, 990)])
def test_depths_of_short_texts_end_at_the_length(length, original):
    prompts = build_prompts(TEXT, length, original)
    assert prompts.depths[0] >= 2
    assert prompts.depths[-1] == length


@pytest.mark.parametrize(
    ("length", "message"),
    [(47, "length: got 48; expected at least 49"), (30_000, "length: got 30001; expected at most 20,001")],
)
def test_an_error_names_the_length_that_the_user_gave_with_room_for_the_predicted_token(length, message):
    with pytest.raises(InputError, match=message):
        build_prompts(TEXT, length, 8192)
