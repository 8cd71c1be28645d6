"""What is wrong is found out and not timed; what is right is compared with its like."""

from __future__ import annotations

import pytest
import torch
from benchmarks.speed import rotate as bench
from benchmarks.speed.peers import PEERS, Peer
from benchmarks.speed.rotate import measure
from benchmarks.speed.shapes import Case, Inputs, Shape
from benchmarks.speed.show import rotate_tables

from ropewalk.ops import rotate

SHAPE = Shape("small", 3, 2, 8, 10_000.0, "")
_FILL = Inputs.fill
CASE = Case(SHAPE, 1, 40, torch.float32, torch.device("cpu"))


class Right(Peer):
    """A peer that does what it should, or what a test makes of it."""

    name = "right"

    def __init__(self, change=lambda q, k: (q, k), shift=0, **options):
        self.change, self.shift, self.options = change, shift, options

    def prepare(self, inputs):
        positions, frequencies = inputs.positions_BT + self.shift, inputs.frequencies
        return lambda: self.change(*rotate(inputs.q_BHTD, inputs.k_BHTD, positions, frequencies, **self.options))


class Overwrites(Right):
    """The same in place."""

    name = "overwrites"
    in_place = True

    def __init__(self):
        super().__init__(in_place=True)


def last_token_left(q, k):
    q[:, :, -1] = 1.0
    return q, k


WRONG = {
    "the other way": Right(inverse=True),
    "one position on": Right(shift=1),
    "the other layout": Right(layout="interleaved"),
    "k left out": Right(lambda q, k: (q, torch.zeros_like(k))),
    "one token": Right(last_token_left),
    "not a number": Right(lambda q, k: (q * torch.nan, k)),
    "too coarse": Right(lambda q, k: (q.half().float(), k)),
    "off by 12 roundings": Right(lambda q, k: (q * (1 + 12 * 2**-23), k)),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_peer_is_reported_and_not_timed(name):
    found = measure(CASE, 1, {"copy": PEERS["copy"], name: WRONG[name]})["contestants"]
    assert "turns wrongly" in found[name]["reason"]
    assert "seconds" not in found[name]
    assert "seconds" in found["copy"]


def test_a_peer_that_fails_is_reported_in_one_line_and_takes_nobody_with_it():
    def fails(q, k):
        raise RuntimeError("no kernel\nfor this device")

    found = measure(CASE, 1, {"fails": Right(fails), "right": Right()})["contestants"]
    assert found["fails"]["reason"] == "RuntimeError: no kernel"
    assert "seconds" in found["right"]


def test_one_that_ruins_q_and_k_ruins_nothing_for_those_after_it():
    class Ruins(Overwrites):
        def prepare(self, inputs):
            return inputs.q_BHTD.zero_

    found = measure(CASE, 1, {"ruins": Ruins(), "overwrites": Overwrites(), "right": Right()})["contestants"]
    assert "reason" in found["ruins"]
    assert found["overwrites"]["error"] < 1e-6
    assert found["right"]["error"] < 1e-6


def test_a_peer_that_is_off_by_a_few_roundings_is_right():
    found = measure(CASE, 1, {"near": Right(lambda q, k: (q * (1 + 4 * 2**-23), k))})["contestants"]["near"]
    assert "seconds" in found


def test_one_that_fails_late_is_dropped_and_the_others_go_on(monkeypatch):
    monkeypatch.setattr(bench, "repeated", lambda call, *_: lambda: (call(), 1.0)[1])

    class FailsLate(Overwrites):
        name = "fails late"

        def prepare(self, inputs):
            call, left = super().prepare(inputs), [1, 2, 3]  # one call to check it, and two rounds

            def once():
                call()
                if not left:
                    inputs.q_BHTD.fill_(torch.nan)
                left.pop()

            return once

    kept = []
    monkeypatch.setattr(bench, "Inputs", lambda case: kept.append(Inputs(case)) or kept[-1])
    row = measure(CASE, 4, {"copy": PEERS["copy"], "fails late": FailsLate(), "right": Right()})
    late = row["contestants"]["fails late"]
    assert late["reason"].startswith("IndexError: ")
    assert not {"seconds", "taken"} & set(late)
    assert [row["contestants"][name]["taken"] for name in ("copy", "right")] == 2 * [[1.0] * 4]
    assert kept[0].q_BHTD.isfinite().all()


def test_a_case_that_does_not_fit_is_a_row_with_its_reason(monkeypatch):
    def too_large(case):
        raise torch.OutOfMemoryError("CUDA out of memory\nTried to allocate")

    monkeypatch.setattr(bench, "Inputs", too_large)
    row = measure(CASE, 1)
    assert row["reason"] == "OutOfMemoryError: CUDA out of memory"
    assert (row["shape"], row["tokens"]) == ("small", 40)


def test_q_and_k_are_filled_anew_only_after_a_call_in_place_was_begun(monkeypatch):
    class Unready(Overwrites):
        def prepare(self, inputs):
            raise RuntimeError("no kernel")

    class Breaks(Overwrites):
        def prepare(self, inputs):
            return lambda: 1 / 0

    filled = []
    monkeypatch.setattr(Inputs, "fill", lambda self: filled.append(1) or _FILL(self))
    for peer, times in ((PEERS["FlashInfer"], 1), (Unready(), 1), (Breaks(), 2)):
        filled.clear()
        assert "reason" in measure(CASE, 1, {"peer": peer})["contestants"]["peer"]
        assert len(filled) == times  # once to begin with


def test_every_timed_call_in_place_is_told(monkeypatch):
    calls, told = [], []

    class Counted(Overwrites):
        def prepare(self, inputs):
            call = super().prepare(inputs)
            return lambda: calls.append(1) or call()

    monkeypatch.setattr(Inputs, "spend", lambda self, turns: told.append(turns))
    assert "seconds" in measure(CASE, 2, {"counted": Counted(), "right": Right()})["contestants"]["counted"]
    assert sum(told) == len(calls) - 1  # one is checked


def test_a_case_that_takes_long_has_fewer_rounds(monkeypatch):
    monkeypatch.setattr(bench, "_CASE_SECONDS", 0.0)
    assert measure(CASE, 9, {"right": Right()})["rounds"] == 4


def test_what_is_missing_is_said():
    found = measure(CASE, 1, {"vLLM": PEERS["FlashInfer"]})["contestants"]["vLLM"]
    assert found == {"role": "peer", "in_place": True, "reason": found["reason"]}
    assert found["reason"]


def test_ratios_are_to_the_copy_and_to_the_fastest_peer_of_the_same_kind(monkeypatch):
    times = {"copy": 1.0, "copy into": 0.5, "ropewalk": 2.0, "ropewalk in place": 1.0, "right": 4.0, "slow": 8.0}
    times |= {"overwrites": 3.0, "copy, large pages": 0.4}
    peers = {name: PEERS[name] for name in times if name in PEERS}
    peers |= {"slow": Right(), "right": Right(), "overwrites": Overwrites()}
    monkeypatch.setattr(peers["copy, large pages"], "missing", lambda _: None)
    monkeypatch.setattr(bench, "in_turn", lambda works, rounds, *_: {name: [times[name]] * rounds for name in works})
    row = measure(CASE, 3, peers)
    found = row["contestants"]
    assert (row["rounds"], row["bytes"]) == (3, 2 * 4 * 40 * (3 + 2) * 8)
    assert found["ropewalk"]["of_limit"]["median"] == 0.5
    assert found["ropewalk in place"]["of_limit"]["median"] == 0.5
    assert (found["ropewalk"]["best_peer"], found["ropewalk"]["of_best_peer"]["median"]) == ("right", 2.0)
    in_place = found["ropewalk in place"]
    assert (in_place["best_peer"], in_place["of_best_peer"]["median"]) == ("overwrites", 3.0)
    assert (found["right"]["best_peer"], found["right"]["of_best_peer"]["median"]) == ("slow", 2.0)
    assert (found["overwrites"]["best_peer"], found["overwrites"]["of_best_peer"]["median"]) == ("right", 4 / 3)
    assert found["copy"]["gb_per_second"] == row["bytes"] / 1e9
    assert not {"of_limit", "of_best_peer"} & set(found["copy"])
    assert found["ropewalk"]["of_large_pages"]["median"] == 0.2
    assert [name for name in found if "of_large_pages" in found[name]] == ["ropewalk"]
    assert found["right"]["taken"] == [4.0] * 3
    columns = ["", "time", "±", "GB/s", "x copy", "x large", "x peer", "the peer"]
    assert [column.header for column in rotate_tables([row])[0].columns] == columns
    del found["ropewalk"]["of_large_pages"]
    columns.remove("x large")
    assert [column.header for column in rotate_tables([row])[0].columns] == columns


def test_more_tokens_than_are_checked_have_their_first_and_last_checked(monkeypatch):
    monkeypatch.setattr(bench, "_SAMPLED", 7)
    found = measure(CASE, 1, {"right": Right(), "one token": Right(last_token_left)})["contestants"]
    assert "seconds" in found["right"]
    assert "reason" in found["one token"]
