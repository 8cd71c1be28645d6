"""The error types: pickling, copying and the suggestion of the nearest name."""

from __future__ import annotations

import copy
import pickle

import pytest

from ropewalk.errors import (
    InputError,
    MissingPackageError,
    UnknownNameError,
    UnsupportedModelError,
    UnsupportedScalingError,
)

ERRORS = [
    InputError("lengths", "9k", "at most 8k", "the text is short"),
    UnknownNameError("method", "yran", ["none", "yarn"]),
    MissingPackageError("ropewalk eval", "lm-eval", "pip install 'ropewalk[eval]'"),
    UnsupportedModelError("GPT2Model", "it has no rotary embedding"),
    UnsupportedScalingError("dynamic-yarn", "vLLM 0.33.0", "yarn:factor=4"),
]


@pytest.mark.parametrize("error", ERRORS, ids=lambda error: type(error).__name__)
def test_errors_can_be_pickled_and_copied(error):
    for other in (pickle.loads(pickle.dumps(error)), copy.deepcopy(error)):
        assert (type(other), str(other), vars(other)) == (type(error), str(error), vars(error))


def test_messages_name_the_field_the_value_and_what_is_expected():
    assert [str(error) for error in ERRORS] == [
        "lengths: got '9k'; expected at most 8k (the text is short)",
        "method: got 'yran'; expected none, yarn (did you mean yarn?)",
        "ropewalk eval needs the package lm-eval: pip install 'ropewalk[eval]'",
        "GPT2Model is not supported: it has no rotary embedding",
        "scaling: got 'dynamic-yarn'; expected a scaling that vLLM 0.33.0 can express (the nearest is yarn:factor=4)",
    ]


def test_a_message_is_one_short_line():
    message = str(InputError("text", "a\n" * 500, "a text"))
    assert "\n" not in message
    assert len(message) < 200
