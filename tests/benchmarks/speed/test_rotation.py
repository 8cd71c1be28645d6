"""Wrong results are found and not timed; correct implementations are compared with those of their kind."""

from __future__ import annotations

import pytest
import torch
from benchmarks.speed import rotation
from benchmarks.speed.cases import Case, Inputs, ModelShape
from benchmarks.speed.implementations import IMPLEMENTATIONS, Implementation
from benchmarks.speed.rotation import measure_rotation
from benchmarks.speed.tables import rotation_tables

from ropewalk.ops import rotate

SHAPE = ModelShape("small", 3, 2, 8, 10_000.0, "")
CASE = Case(SHAPE, 1, 40, torch.float32, torch.device("cpu"))


class Correct(Implementation):
    """A correct implementation, which a test can change."""

    name = "correct"

    def __init__(self, change=lambda q, k: (q, k), shift=0, **options):
        self.change, self.shift, self.options = change, shift, options

    def prepare(self, inputs):
        positions, frequencies = inputs.positions_BT + self.shift, inputs.frequencies
        return lambda: self.change(*rotate(inputs.q_BHTD, inputs.k_BHTD, positions, frequencies, **self.options))


class CorrectInPlace(Correct):
    """The correct implementation, in place."""

    name = "correct in place"
    in_place = True

    def __init__(self):
        super().__init__(in_place=True)


def measure(implementations, rounds=1):
    return measure_rotation(CASE, rounds, implementations)["contestants"]


def overwrite_last_token(q, k):
    q[:, :, -1] = 1.0
    return q, k


WRONG = {
    "opposite direction": Correct(inverse=True),
    "next position": Correct(shift=1),
    "other layout": Correct(layout="interleaved"),
    "k is zero": Correct(lambda q, k: (q, torch.zeros_like(k))),
    "one wrong token": Correct(overwrite_last_token),
    "NaN": Correct(lambda q, k: (q * torch.nan, k)),
    "rounded to float16": Correct(lambda q, k: (q.half().float(), k)),
    "off by 12 roundings": Correct(lambda q, k: (q * (1 + 12 * 2**-23), k)),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_result_is_reported_and_not_timed(name):
    found = measure({"copy": IMPLEMENTATIONS["copy"], name: WRONG[name]})
    assert "wrong result" in found[name]["reason"]
    assert "seconds" not in found[name]
    assert "seconds" in found["copy"]


def test_a_failure_is_reported_in_one_line_and_the_others_continue():
    def fail(q, k):
        raise RuntimeError("no kernel\nfor this device")

    found = measure({"fails": Correct(fail), "correct": Correct()})
    assert found["fails"]["reason"] == "RuntimeError: no kernel"
    assert "seconds" in found["correct"]


def test_q_and_k_are_filled_again_after_a_wrong_rotation_in_place():
    class SetsToZero(CorrectInPlace):
        def prepare(self, inputs):
            return inputs.q_BHTD.zero_

    found = measure_rotation(
        CASE, 1, {"zero": SetsToZero(), "correct in place": CorrectInPlace(), "correct": Correct()}
    )["contestants"]
    assert "reason" in found["zero"]
    assert found["correct in place"]["error"] < 1e-6
    assert found["correct"]["error"] < 1e-6


def test_errors_of_a_few_roundings_are_allowed():
    found = measure({"near": Correct(lambda q, k: (q * (1 + 4 * 2**-23), k))})["near"]
    assert "seconds" in found


def test_a_failure_in_a_later_round_drops_only_that_implementation(monkeypatch):
    monkeypatch.setattr(rotation, "make_timer", lambda call, *_: lambda: (call(), 1.0)[1])

    class FailsLate(CorrectInPlace):
        name = "fails late"

        def prepare(self, inputs):
            call, calls_left = super().prepare(inputs), [1, 2, 3]  # the check and two rounds

            def fail_after_three_calls():
                call()
                if not calls_left:
                    inputs.q_BHTD.fill_(torch.nan)
                calls_left.pop()

            return fail_after_three_calls

    inputs = Inputs(CASE)
    monkeypatch.setattr(rotation, "Inputs", lambda case: inputs)
    row = measure_rotation(CASE, 4, {"copy": IMPLEMENTATIONS["copy"], "fails late": FailsLate(), "correct": Correct()})
    late = row["contestants"]["fails late"]
    assert late["reason"].startswith("IndexError: ")
    assert not {"seconds", "taken"} & set(late)
    assert [row["contestants"][name]["taken"] for name in ("copy", "correct")] == 2 * [[1.0] * 4]
    assert inputs.q_BHTD.isfinite().all()


def test_a_case_that_does_not_fit_into_memory_is_a_row_with_the_reason(monkeypatch):
    def run_out_of_memory(case):
        raise torch.OutOfMemoryError("CUDA out of memory\nTried to allocate")

    monkeypatch.setattr(rotation, "Inputs", run_out_of_memory)
    row = measure_rotation(CASE, 1)
    assert row["reason"] == "OutOfMemoryError: CUDA out of memory"
    assert (row["shape"], row["tokens"]) == ("small", 40)


def test_q_and_k_are_filled_again_only_after_a_call_in_place_has_begun(monkeypatch):
    class FailsToPrepare(CorrectInPlace):
        def prepare(self, inputs):
            raise RuntimeError("no kernel")

    class FailsToRun(CorrectInPlace):
        def prepare(self, inputs):
            return lambda: 1 / 0

    fills = []
    fill = Inputs.fill
    monkeypatch.setattr(Inputs, "fill", lambda self: fills.append(1) or fill(self))
    for implementation, count in ((IMPLEMENTATIONS["FlashInfer"], 1), (FailsToPrepare(), 1), (FailsToRun(), 2)):
        fills.clear()
        assert "reason" in measure({"name": implementation})["name"]
        assert len(fills) == count  # the first when the inputs are created


def test_every_timed_call_in_place_is_announced(monkeypatch):
    calls, announced = [], []

    class Counted(CorrectInPlace):
        def prepare(self, inputs):
            call = super().prepare(inputs)
            return lambda: calls.append(1) or call()

    monkeypatch.setattr(Inputs, "prepare_in_place_rotations", lambda self, count: announced.append(count))
    assert "seconds" in measure({"counted": Counted(), "correct": Correct()}, rounds=2)["counted"]
    assert sum(announced) == len(calls) - 1  # one call is the check


def test_a_slow_case_has_fewer_rounds(monkeypatch):
    monkeypatch.setattr(rotation, "_MAX_CASE_SECONDS", 0.0)
    assert measure_rotation(CASE, 9, {"correct": Correct()})["rounds"] == 4


def test_an_unavailable_implementation_has_a_reason():
    found = measure({"vLLM": IMPLEMENTATIONS["FlashInfer"]})["vLLM"]
    assert found == {"role": "peer", "in_place": True, "reason": found["reason"]}
    assert found["reason"]


def test_speeds_are_relative_to_the_copy_and_to_the_fastest_peer_of_the_same_kind(monkeypatch):
    times = {"copy": 1.0, "copy into": 0.5, "ropewalk": 2.0, "ropewalk in place": 1.0, "correct": 4.0, "slow": 8.0}
    times |= {"correct in place": 3.0, "copy, large pages": 0.4}
    implementations = {name: IMPLEMENTATIONS[name] for name in times if name in IMPLEMENTATIONS}
    implementations |= {"slow": Correct(), "correct": Correct(), "correct in place": CorrectInPlace()}
    monkeypatch.setattr(implementations["copy, large pages"], "unavailable_reason", lambda _: None)
    monkeypatch.setattr(
        rotation, "run_in_rounds", lambda timers, rounds, *_: {name: [times[name]] * rounds for name in timers}
    )
    row = measure_rotation(CASE, 3, implementations)
    found = row["contestants"]
    assert (row["rounds"], row["bytes"]) == (3, 2 * 4 * 40 * (3 + 2) * 8)
    assert found["ropewalk"]["of_limit"]["median"] == 0.5
    assert found["ropewalk in place"]["of_limit"]["median"] == 0.5
    best = {
        name: (row["best_peer"], row["of_best_peer"]["median"]) for name, row in found.items() if "best_peer" in row
    }
    assert best == {
        "ropewalk": ("correct", 2.0),
        "ropewalk in place": ("correct in place", 3.0),
        "correct": ("slow", 2.0),
        "slow": ("correct", 0.5),
        "correct in place": ("correct", 4 / 3),
    }
    assert found["copy"]["gb_per_second"] == row["bytes"] / 1e9
    assert not {"of_limit", "of_best_peer"} & set(found["copy"])
    assert found["ropewalk"]["of_large_pages"]["median"] == 0.2
    assert [name for name in found if "of_large_pages" in found[name]] == ["ropewalk"]
    assert found["correct"]["taken"] == [4.0] * 3
    columns = ["", "time", "±", "GB/s", "x copy", "x large", "x peer", "the peer"]
    assert [str(column.header) for column in rotation_tables([row])[0].columns] == columns
    del found["ropewalk"]["of_large_pages"]
    columns.remove("x large")
    assert [str(column.header) for column in rotation_tables([row])[0].columns] == columns


def test_the_first_and_the_last_token_of_a_long_text_are_checked(monkeypatch):
    monkeypatch.setattr(rotation, "_MAX_CHECKED_TOKENS", 7)
    found = measure_rotation(CASE, 1, {"correct": Correct(), "one wrong token": Correct(overwrite_last_token)})[
        "contestants"
    ]
    assert "seconds" in found["correct"]
    assert "reason" in found["one wrong token"]
