"""Truncation of prompts whose pieces have more tokens than the whole."""

from __future__ import annotations

import pytest

import ropewalk as rw
from ropewalk.evaluate.truncation import truncate_middle


class GrowingTokenizer:
    """One token per character, but each decoded text comes back with a few tokens more.

    Attributes:
        calls: number of texts that were tokenized.
    """

    def __init__(self, extra):
        self.extra, self.calls, self.was_decoded = extra, 0, False

    def __call__(self, text, add_special_tokens=True, verbose=True):
        self.calls += 1
        return {"input_ids": [*text, *"+" * (self.extra if self.was_decoded else 0)]}

    def decode(self, token_ids):
        self.was_decoded = True
        return "".join(token_ids)


class StubbornTokenizer(GrowingTokenizer):
    """The truncated text has one token too many until `needed` tokens are dropped."""

    def __init__(self, length, needed):
        super().__init__(0)
        self.length, self.needed = length, needed

    def __call__(self, text, add_special_tokens=True, verbose=True):
        token_ids = super().__call__(text)["input_ids"]
        is_too_long = self.was_decoded and len(token_ids) > self.length - self.needed
        return {"input_ids": ["x"] * (self.length + 1) if is_too_long else token_ids}


def truncate(tokenizer, text, length):
    return truncate_middle(tokenizer, text, lambda text: tokenizer(text + "?")["input_ids"], length, "file")


def test_the_middle_is_dropped():
    assert truncate(GrowingTokenizer(0), "0123456789", 7) == ("012789", [*"012789?"])
    assert truncate(GrowingTokenizer(2), "0123456789", 7) == ("0189", [*"0189?++"])
    assert truncate(GrowingTokenizer(2), "012345", 7) == ("012345", [*"012345?"])


def test_a_context_that_does_not_fit_at_all_is_dropped_as_a_whole():
    assert truncate(GrowingTokenizer(0), "0123456789", 1) == ("", ["?"])


def test_a_question_that_does_not_fit_is_counted_without_its_context():
    with pytest.raises(
        rw.InputError, match="file: got '5 tokens without its context'; expected at most the 3 requested"
    ):
        truncate_middle(GrowingTokenizer(0), "0123456789", lambda text: list(text + "12345"), 3, "file")


def test_a_tokenizer_that_always_adds_one_more_needs_few_steps():
    length, needed = 100_000, 50_000
    tokenizer = StubbornTokenizer(length, needed)
    text, token_ids = truncate(tokenizer, "a" * 2 * length, length)
    assert len(text) < 2 * length
    assert len(token_ids) <= length
    assert tokenizer.calls < 25, "one step per token would be quadratic"
