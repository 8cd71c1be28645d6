"""Sentence ends of a long text, and the work that finding them takes."""

from __future__ import annotations

import re

import pytest

from ropewalk.evaluate.tasks.haystack import find_sentence_ends

# The definition: after the punctuation of a sentence, and at each line end that blank lines follow. As one regular
# expression it needs a time that is quadratic in the number of blank lines.
_DEFINITION = re.compile(r"[.!?][\"')\]]*(?=\s)|[。！？]+|(?=\n\s*\n)")


@pytest.mark.parametrize(
    "text",
    [
        *(
            "",
            "One. Two.\nThree",
            "a.\n\nb",
            "a\n\n\n\nb\n",
            "a \n \t\n b\n\nc",
            "\n\n",
            "a\r\n\r\nb",
            "好。吗？！\n\n",
        ),
        *('He said "no!" and (left.) Then\n\u3000\nit', "x\u2028\n\x0b\ny.", "好。吗？！\n\n", "no end at all"),
    ],
)
def test_sentence_ends_are_those_of_the_definition(text):
    expected = {match.end() for match in _DEFINITION.finditer(text)}
    assert set(find_sentence_ends(text)) == expected


@pytest.mark.parametrize("blank", ["\n", " \n", "\n \t"])
def test_many_blank_lines_are_read_once(blank):
    """Reading them once for each of them would take days."""
    text = "Begin." + blank * 300_000 + "End."
    assert len(find_sentence_ends(text)) >= 300_000
