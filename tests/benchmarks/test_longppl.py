from __future__ import annotations

import pytest
from benchmarks.longppl import rank_correlation, ranks
from benchmarks.measured_plan import list_grid


def test_equal_values_share_their_mean_rank():
    assert ranks([10.0, 30.0, 10.0, 20.0]).tolist() == [0.5, 3.0, 0.5, 2.0]


def test_the_rank_correlation_is_that_of_spearman():
    assert rank_correlation([1, 2, 30, 400], [4, 3, 2, 1]) == pytest.approx(-1)
    # Ranks 0 1 2 3 and 1 0 3 2: 1 - 6 * 4 / (4 * 15).
    assert rank_correlation([1, 2, 3, 4], [2, 1, 4, 3]) == pytest.approx(0.6)
    assert rank_correlation([1, 2], [5, 5]) is None


def test_the_grid_has_every_method_at_every_factor():
    grid = list_grid(16_384, 8192)
    assert grid[:4] == ["yarn:factor=2", "yarn:factor=2.5", "yarn:factor=3", "yarn:factor=4"]
    assert len(grid) == len(set(grid)) == 16
