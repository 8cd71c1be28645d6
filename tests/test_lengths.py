"""Parsing and formatting of lengths."""

from __future__ import annotations

import pytest

import ropewalk as rw
from ropewalk.lengths import format_length, parse_length


@pytest.mark.parametrize(
    ("text", "tokens"),
    [("8192", 8192), ("8k", 8192), ("128K", 131072), ("1m", 1048576), ("1.5k", 1536), (" 2k ", 2048)],
)
def test_parse_length(text, tokens):
    assert parse_length(text) == tokens


@pytest.mark.parametrize("text", ["", "k", "-1", "0", "8kb", "1e4", "1.3", "nan", "9999m", "八"])
def test_other_text_raises_input_error(text):
    with pytest.raises(rw.InputError, match=r"^lengths: got"):
        parse_length(text, "lengths")


def test_formatted_length_parses_back():
    for tokens in (1, 1000, 1024, 8192, 12288, 131072, 2**20, 3 * 2**20):
        assert parse_length(format_length(tokens)) == tokens
