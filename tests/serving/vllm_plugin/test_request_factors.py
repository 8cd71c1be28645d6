"""The list of factors: what a request gets, and the rows of the table; a vLLM that the plugin cannot hook."""

import sys
import types

import pytest

from ropewalk.errors import InputError
from ropewalk.serving.vllm_plugin import register
from ropewalk.serving.vllm_plugin.request_factors import RequestFactors

FACTORS = RequestFactors(8192, (1, 1.5, 2, 4))


@pytest.mark.parametrize(
    ("tokens", "factor"),
    [(1, 1), (8192, 1), (8193, 1.5), (12_288, 1.5), (12_289, 2), (16_384, 2), (16_385, 4), (32_768, 4)],
)
def test_request_gets_the_smallest_factor_that_covers_it(tokens, factor):
    assert FACTORS.factors[FACTORS.choose(tokens)] == factor


def test_longer_requests_are_refused():
    with pytest.raises(InputError, match="got 32769; expected at most 32,768"):
        FACTORS.choose(32_769)


def test_rows_of_the_factors_follow_one_another():
    assert FACTORS.lengths == (8192, 12_288, 16_384, 32_768)
    assert FACTORS.first_rows == (0, 8192, 20_480, 36_864)


@pytest.mark.parametrize(
    ("rope_dict", "message"),
    [
        ({}, "factors: got None"),
        ({"factors": [1, 2]}, "original_max_position_embeddings: got 0"),
        ({"factors": [2, 4], "original_max_position_embeddings": 64}, r"factors: got \[2, 4\]; expected an ascending"),
        ({"factors": [1, 4, 2], "original_max_position_embeddings": 64}, "expected an ascending list"),
        ({"factors": [1, 2, 2], "original_max_position_embeddings": 64}, "expected an ascending list"),
        ({"factors": [1, "2"], "original_max_position_embeddings": 64}, "factors: got '2'"),
        ({"factors": 4, "original_max_position_embeddings": 64}, "factors: got 4"),
    ],
)
def test_wrong_rope_dicts_are_refused(rope_dict, message):
    with pytest.raises(InputError, match=message):
        RequestFactors.from_rope_dict(rope_dict)


def test_a_vllm_without_the_functions_of_the_hooks_is_left_alone(monkeypatch, caplog):
    """vLLM calls every installed plugin when it starts; an error would stop servers that do not ask for this one."""
    monkeypatch.setitem(sys.modules, "vllm", types.ModuleType("vllm"))
    with caplog.at_level("INFO"):
        register()
    assert "do not work with this vLLM" in caplog.text
