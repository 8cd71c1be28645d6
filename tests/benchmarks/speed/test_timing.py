from __future__ import annotations

import gc
import itertools

import pytest
import torch
from benchmarks.speed import timing
from benchmarks.speed.timing import make_timer, quartiles, relative_speed, round_seconds, run_in_rounds

CPU = torch.device("cpu")


class Clock:
    """A clock that moves only when `advance` is called."""

    now = 0.0

    def advance(self, seconds):
        self.now += seconds


class TimedFunction:
    """A function that advances the clock and counts its calls; the first call may take longer."""

    def __init__(self, clock, seconds, first_seconds=None):
        self.clock, self.seconds, self.calls = clock, seconds, 0
        self.first_seconds = seconds if first_seconds is None else first_seconds

    def __call__(self):
        self.clock.advance(self.seconds if self.calls else self.first_seconds)
        self.calls += 1
        return self.seconds


@pytest.fixture
def clock(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(timing.time, "perf_counter", lambda: clock.now)
    return clock


class TestRunInRounds:
    def test_every_other_round_is_in_reverse_order(self):
        order = []
        numbers = itertools.count()

        def make_function(name):
            def function():
                order.append(name)
                return next(numbers)

            return function

        seconds = run_in_rounds({name: make_function(name) for name in "abc"}, 3)
        assert "".join(order) == "abccbaabc"
        assert seconds == {"a": [0, 5, 6], "b": [1, 4, 7], "c": [2, 3, 8]}

    def test_no_round_begins_after_the_time_limit_except_for_the_first_four(self, clock):
        assert len(run_in_rounds({"a": TimedFunction(clock, 10.0)}, 100, max_seconds=25.0)["a"]) == 4
        clock.now = 0.0
        assert len(run_in_rounds({"a": TimedFunction(clock, 1.0)}, 100, max_seconds=25.0)["a"]) == 26

    def test_a_function_that_fails_is_dropped_and_the_others_continue(self):
        results = iter([1.0])

        def fails_in_the_second_round():
            try:
                return next(results)
            except StopIteration:
                raise ValueError("no more") from None

        failures = []
        timers = {"a": lambda: 5.0, "fails": fails_in_the_second_round, "b": lambda: 6.0}
        seconds = run_in_rounds(timers, 3, on_failure=lambda name, error: failures.append((name, type(error))))
        assert seconds == {"a": [5.0] * 3, "b": [6.0] * 3}
        assert failures == [("fails", ValueError)]
        with pytest.raises(ValueError, match="no more"):
            run_in_rounds(timers, 3)


class TestMakeTimer:
    def test_a_short_function_is_repeated_for_20_ms(self, clock):
        function = TimedFunction(clock, 0.0005)
        timer = make_timer(function, CPU)
        function.calls = 0
        assert timer() == pytest.approx(0.0005)
        assert 40 <= function.calls <= 50

    def test_synchronization_does_not_count(self, clock, monkeypatch):
        monkeypatch.setattr(timing, "synchronize", lambda _: clock.advance(0.0005))  # twice around each batch
        function = TimedFunction(clock, 0.0001)
        timer = make_timer(function, CPU)
        function.calls = 0
        assert timer() == pytest.approx(0.0001, rel=0.05)
        assert function.calls >= 190

    def test_the_slow_first_call_does_not_count(self, clock):
        function = TimedFunction(clock, 0.0005, first_seconds=3.0)
        timer = make_timer(function, CPU)
        function.calls = 1  # not the first call any more
        assert timer() == pytest.approx(0.0005)
        assert function.calls - 1 >= 40

    def test_a_long_function_is_called_once(self, clock):
        function = TimedFunction(clock, 3.0)
        timer = make_timer(function, CPU)
        function.calls = 0
        assert timer() == pytest.approx(3.0)
        assert function.calls == 1

    def test_before_batch_gets_the_number_of_calls_and_is_not_timed(self, clock):
        batches = []

        def before_batch(count):
            batches.append(count)
            clock.advance(5.0)

        function = TimedFunction(clock, 0.001)
        timer = make_timer(function, CPU, before_batch, batch_size=8)
        assert sum(batches) == function.calls  # also while the number of calls is chosen
        batches.clear()
        assert timer() == pytest.approx(0.001)
        assert batches[:2] == [8, 8]
        assert 20 <= sum(batches) <= 25


def test_seconds_are_rounded_to_five_digits():
    assert round_seconds([1.23456789e-5, 12.3456789]) == [1.2346e-5, 12.346]


def test_quartiles():
    assert quartiles([5.0, 1.0, 2.0, 4.0, 3.0]) == {"median": 3.0, "low": 2.0, "high": 4.0}
    assert quartiles([7.0]) == {"median": 7.0, "low": 7.0, "high": 7.0}


def test_speeds_are_compared_within_each_round():
    # A machine that slows down threefold: in every round the first function takes twice as long.
    assert relative_speed([2.0, 4.0, 6.0], [1.0, 2.0, 3.0]) == {"median": 0.5, "low": 0.5, "high": 0.5}
    # The ratios are 2, 3, 1, and then 4, 1, 1.5. The ratio of the medians would be 2 both times.
    assert relative_speed([1.0, 2.0, 4.0], [2.0, 6.0, 4.0])["median"] == 2.0
    assert relative_speed([1.0, 10.0, 2.0], [4.0, 10.0, 3.0])["median"] == 1.5


def test_no_garbage_is_collected_while_calls_are_timed():
    seen = []
    timing.time_calls(lambda: seen.append(gc.isenabled()), CPU)
    assert seen == [False]
    assert gc.isenabled()
    gc.disable()
    try:
        timing.time_calls(lambda: None, CPU)
        assert not gc.isenabled()
    finally:
        gc.enable()
