"""CoPE against the numbers of its paper and against the code of its authors."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import ropewalk as rw
from ropewalk.scaling.longrope import MAX_DIVISOR

LLAMA_3 = rw.Rope(128, 500_000, 8192)
ropes = st.builds(
    rw.Rope,
    dim=st.integers(2, 128).map(lambda half: 2 * half),
    base=st.floats(100, 1e9),
    original_length=st.integers(64, 200_000),
)


def window(rope, scaling):
    return scaling.frequencies(rope).inv_freq / rope.inv_freq


def test_default_tapers_the_29_pairs_of_llama_3_that_complete_no_rotation():
    found = window(LLAMA_3, rw.CoPE())
    np.testing.assert_array_equal(found[:36], 1)  # the first tapered pair, 35, has the weight 1
    assert (found[36:] < 1).all()
    assert rw.CoPE().frequencies(LLAMA_3) == rw.CoPE(onset=64 - 29).frequencies(LLAMA_3)


def test_window_equals_that_of_the_authors_for_20_pairs():
    # hrlics/CoPE, modeling_cope.py, multiplies the last 20 by 0.5 (1 + cos x) with x = linspace(0, pi, 20). This is
    # cos(x / 2)^2, where x / 2 has steps of pi / 38.
    found = window(rw.Rope(128, 1e7, 65_536), rw.CoPE(onset=44))
    np.testing.assert_array_equal(found[:44], 1)
    np.testing.assert_allclose(found[44:], [math.cos(math.pi / 38 * k) ** 2 for k in range(20)], rtol=1e-12, atol=1e-30)


@settings(max_examples=60, deadline=None)
@given(rope=ropes, factor=st.floats(1, 64))
def test_slowest_pair_stands_still_and_no_pair_becomes_faster(rope, factor):
    onset = int((rope.wavelengths <= rope.original_length).sum())
    yarn, found = rw.YaRN(factor=factor).frequencies(rope), rw.CoPE(factor=factor).frequencies(rope)
    np.testing.assert_array_equal(found.inv_freq[:onset], yarn.inv_freq[:onset])
    assert (found.inv_freq <= yarn.inv_freq).all()
    assert found.attention_factor == yarn.attention_factor
    tapered = rope.dim // 2 - onset
    assert (found.inv_freq[-1] == 0) == (tapered >= 2)


@pytest.mark.parametrize("onset", [63, 64])
def test_a_single_or_no_tapered_pair_changes_nothing(onset):
    np.testing.assert_allclose(window(LLAMA_3, rw.CoPE(onset=onset)), 1, rtol=1e-15)


@pytest.mark.parametrize("dim", [32, 80])
def test_the_lists_of_phi_1_and_2_are_accepted(dim):
    """Rounding must not take the divisor of the pair that stands still past the largest one."""
    rope = rw.Rope(dim, 10_000.0, 2048)
    lists = rw.CoPE().to_rope_parameters(rope)
    assert max(lists["long_factor"]) <= MAX_DIVISOR
    assert rw.parse(lists).frequencies(rope).inv_freq[-1] < 1e-15
