from __future__ import annotations

import itertools

import pytest
import torch
from benchmarks.speed import timing
from benchmarks.speed.timing import in_turn, repeated, rounded, speed, spread

CPU = torch.device("cpu")


@pytest.fixture
def clock(monkeypatch):
    """A clock that moves when told to."""

    class Clock:
        now = 0.0

        def move(self, seconds):
            self.now += seconds

    clock = Clock()
    monkeypatch.setattr(timing.time, "perf_counter", lambda: clock.now)
    return clock


def test_every_other_round_goes_backwards():
    order = []
    numbers = itertools.count()
    works = {name: lambda name=name: order.append(name) or next(numbers) for name in "abc"}
    taken = in_turn(works, 3)
    assert "".join(order) == "abccbaabc"
    assert taken == {"a": [0, 5, 6], "b": [1, 4, 7], "c": [2, 3, 8]}


def test_no_round_begins_after_the_time_but_there_are_four(clock):
    taken = in_turn({"a": lambda: clock.move(10.0) or 10.0}, 100, at_most=25.0)
    assert len(taken["a"]) == 4
    clock.now = 0.0
    assert len(in_turn({"a": lambda: clock.move(1.0) or 1.0}, 100, at_most=25.0)["a"]) == 26


def test_a_short_call_is_repeated_for_20_ms_and_the_time_is_of_one(clock):
    calls = []
    seconds = repeated(lambda: calls.append(1) or clock.move(0.0005), CPU)
    calls.clear()
    assert seconds() == pytest.approx(0.0005)
    assert 40 <= len(calls) <= 50


def test_waiting_for_the_device_is_not_work(clock, monkeypatch):
    monkeypatch.setattr(timing, "synchronise", lambda _: clock.move(0.0005))  # twice around each part
    calls = []
    seconds = repeated(lambda: calls.append(1) or clock.move(0.0001), CPU)
    calls.clear()
    assert seconds() == pytest.approx(0.0001, rel=0.05)
    assert len(calls) >= 190


def test_the_first_call_is_not_one_to_go_by(clock):
    calls = []
    seconds = repeated(lambda: clock.move(0.0005 if calls else 3.0) or calls.append(1), CPU)
    calls[:] = [1]
    assert seconds() == pytest.approx(0.0005)
    assert len(calls) - 1 >= 40


def test_a_long_call_is_made_once(clock):
    calls = []
    seconds = repeated(lambda: calls.append(1) or clock.move(3.0), CPU)
    calls.clear()
    assert seconds() == pytest.approx(3.0)
    assert len(calls) == 1


def test_what_is_done_before_is_told_how_many_calls_follow_and_is_not_timed(clock):
    told = []
    calls = []
    work = lambda: calls.append(1) or clock.move(0.001)  # noqa: E731
    seconds = repeated(work, CPU, lambda n: told.append(n) or clock.move(5.0), at_a_time=8)
    assert sum(told) == len(calls)  # while the number of calls is sought, too
    told.clear()
    assert seconds() == pytest.approx(0.001)
    assert told[:2] == [8, 8]
    assert 20 <= sum(told) <= 25


def test_one_that_fails_is_left_out_and_the_others_go_on():
    def fails():
        if failing:
            raise ValueError("no more")
        failing.append(True)
        return 1.0

    failing, told = [], []
    works = {"a": lambda: 5.0, "fails": fails, "b": lambda: 6.0}
    taken = in_turn(works, 3, failed=lambda name, error: told.append((name, type(error))))
    assert taken == {"a": [5.0] * 3, "b": [6.0] * 3}
    assert told == [("fails", ValueError)]
    with pytest.raises(ValueError, match="no more"):
        in_turn(works, 3)


def test_seconds_are_kept_to_five_digits():
    assert rounded([1.23456789e-5, 12.3456789]) == [1.2346e-5, 12.346]


def test_spread_is_median_and_quartiles():
    assert spread([5.0, 1.0, 2.0, 4.0, 3.0]) == {"median": 3.0, "low": 2.0, "high": 4.0}
    assert spread([7.0]) == {"median": 7.0, "low": 7.0, "high": 7.0}


def test_speed_is_of_the_rounds_not_of_the_medians():
    # A machine that slows down threefold over the rounds: within each, ours takes twice as long.
    assert speed([2.0, 4.0, 6.0], [1.0, 2.0, 3.0]) == {"median": 0.5, "low": 0.5, "high": 0.5}
    assert speed([1.0, 2.0, 4.0], [2.0, 6.0, 4.0])["median"] == 2.0  # of 2, 3, 1; the medians would give 2
    assert speed([1.0, 10.0, 2.0], [4.0, 10.0, 3.0])["median"] == 1.5  # of 4, 1, 1.5; the medians would give 2
