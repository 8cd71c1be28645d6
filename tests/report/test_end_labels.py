from __future__ import annotations

from ropewalk.report.end_labels import spread_apart


def test_overlapping_labels_are_moved_apart_no_further_than_needed():
    assert spread_apart([0.0, 20.0, 21.0, 90.0], gap=10) == [0.0, 15.5, 25.5, 90.0]
    assert spread_apart([5.0, 5.0, 5.0], gap=10) == [-5.0, 5.0, 15.0]


def test_labels_stay_within_the_limits():
    assert spread_apart([80.0, 100.0, 100.0, 100.0], gap=10, limits=(0, 100)) == [70.0, 80.0, 90.0, 100.0]
    assert spread_apart([0.0, 0.0, 60.0], gap=10, limits=(0, 100)) == [0.0, 10.0, 60.0]
    assert spread_apart([0.0, 100.0], gap=10, limits=(0, 100)) == [0.0, 100.0]
