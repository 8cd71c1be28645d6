from __future__ import annotations

from ropewalk.report.labels import apart


def test_labels_are_moved_apart_and_no_further_than_needed():
    assert apart([0.0, 20.0, 21.0, 90.0], gap=10) == [0.0, 15.5, 25.5, 90.0]
    assert apart([5.0, 5.0, 5.0], gap=10) == [-5.0, 5.0, 15.0]


def test_labels_stay_within_the_picture_and_apart():
    assert apart([80.0, 100.0, 100.0, 100.0], gap=10, within=(0, 100)) == [70.0, 80.0, 90.0, 100.0]
    assert apart([0.0, 0.0, 60.0], gap=10, within=(0, 100)) == [0.0, 10.0, 60.0]
    assert apart([0.0, 100.0], gap=10, within=(0, 100)) == [0.0, 100.0]
