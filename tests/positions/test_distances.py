"""The distances of every position method against dense references that are written from the publications."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.helpers import position_oracle as oracle
from tests.helpers.position_distances import relative_positions

import ropewalk as rw
from ropewalk.positions import REGISTRY

LENGTHS = st.integers(1, 90)
ORIGINAL_LENGTHS = st.integers(2, 48)
WINDOWS = st.integers(1, 60)


def assert_causal_equal(actual: np.ndarray, expected: np.ndarray) -> None:
    np.testing.assert_allclose(np.tril(actual), np.tril(expected), rtol=0, atol=1e-9)


@settings(max_examples=60, deadline=None)
@given(LENGTHS, ORIGINAL_LENGTHS, st.integers(1, 20), WINDOWS)
def test_self_extend(length, original_length, group, window):
    actual = relative_positions(rw.SelfExtend(group, window), length, original_length)
    assert_causal_equal(actual, oracle.self_extend(length, original_length, group, window))


@settings(max_examples=60, deadline=None)
@given(LENGTHS, ORIGINAL_LENGTHS, st.floats(1, 20), WINDOWS)
def test_leaky_rerope(length, original_length, factor, window):
    actual = relative_positions(rw.LeakyReRoPE(factor, window), length, original_length)
    assert_causal_equal(actual, oracle.leaky_rerope(length, original_length, factor, window))


@settings(max_examples=60, deadline=None)
@given(LENGTHS, ORIGINAL_LENGTHS, WINDOWS)
def test_rerope(length, original_length, window):
    actual = relative_positions(rw.ReRoPE(window), length, original_length)
    assert_causal_equal(actual, oracle.rerope(length, original_length, window))


@settings(max_examples=60, deadline=None)
@given(LENGTHS, ORIGINAL_LENGTHS, WINDOWS, st.none() | st.integers(1, 9))
def test_jet_long(length, original_length, window, group):
    actual = relative_positions(rw.JetLong(window, group), length, original_length)
    assert_causal_equal(actual, oracle.jet_long(length, original_length, window, group))


@settings(max_examples=60, deadline=None)
@given(LENGTHS, ORIGINAL_LENGTHS, st.integers(2, 60), st.integers(1, 59))
def test_dual_chunk(length, original_length, chunk_size, local_size):
    local_size = min(local_size, chunk_size - 1)
    actual = relative_positions(rw.DualChunk(chunk_size, local_size), length, original_length)
    assert_causal_equal(actual, oracle.dual_chunk(length, original_length, chunk_size, local_size))


def test_self_extend_by_hand():
    # The example of arXiv 2401.01325, figure 3: ten tokens, G 2, W 4, a model trained on 7 tokens.
    last_query = relative_positions(rw.SelfExtend(group=2, window=4), 10, original_length=7)[9]
    assert last_query.tolist() == [6, 6, 5, 5, 4, 4, 3, 2, 1, 0]


@pytest.mark.parametrize("name", REGISTRY)
def test_texts_within_the_original_length_keep_their_distances(name):
    positions = np.arange(64)
    assert_causal_equal(relative_positions(rw.parse(name), 64, 64), positions[:, None] - positions)


@pytest.mark.parametrize("name", sorted(set(REGISTRY) - {"near-exact"}))  # it changes frequencies, not positions
def test_default_options_keep_every_distance_within_the_training(name):
    for original_length in (8, 64, 100):
        relative = np.tril(relative_positions(rw.parse(name), 7 * original_length, original_length))
        assert relative.min() >= 0
        assert relative.max() <= original_length  # Self-Extend rounds up by at most one token


@pytest.mark.parametrize("name", REGISTRY)
@pytest.mark.parametrize("cut", [1, 63, 64, 65, 100, 250])
def test_a_text_read_in_parts_has_the_distances_of_the_text_read_at_once(name, cut):
    method = rw.parse(name)

    def resolved_at_each_query(blocks):
        return [resolved for start, stop, resolved in blocks for _ in range(start, stop)]

    at_once = method.blocks(64, 0, 300)
    in_parts = method.blocks(64, 0, cut) + method.blocks(64, cut, 300)
    assert resolved_at_each_query(in_parts) == resolved_at_each_query(at_once)
    assert all(resolved == method.resolve(64, m + 1) for m, resolved in enumerate(resolved_at_each_query(at_once)))


@pytest.mark.parametrize("name", REGISTRY)
def test_the_first_near_key_never_moves_back(name):
    for start, stop, resolved in rw.parse(name).blocks(64, 0, 400):
        near_start = resolved.near_start(np.arange(start, stop))
        assert (np.diff(near_start) >= 0).all()
        assert (near_start <= np.arange(start, stop)).all()


@pytest.mark.parametrize("name", REGISTRY)
def test_formulas_work_on_torch_tensors(name):
    torch = pytest.importorskip("torch")
    resolved = rw.parse(name).resolve(64, 300)
    m = np.arange(50, 300)
    functions = [resolved.near_start, resolved.key_position]
    functions += [f for segment in resolved.far_segments for f in (segment.start, segment.query_position)]
    for function in functions:
        np.testing.assert_allclose(function(torch.arange(50, 300)).numpy(), function(m), rtol=1e-6)
