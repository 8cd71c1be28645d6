"""The parts of a call on a CUDA device, with a pretended device."""

from __future__ import annotations

from contextlib import nullcontext
from types import SimpleNamespace

import pytest
import torch
from benchmarks.speed import cuda_timing, rotation, timing
from benchmarks.speed.cuda_timing import make_graph_timer, make_launch_timer
from benchmarks.speed.tables import rotation_tables

DEVICE = torch.device("cuda")
HOST, KERNEL = 3e-6, 40e-6


class PretendedCuda:
    """A device with a queue: calls take the host HOST seconds, and the device another KERNEL seconds each."""

    def __init__(self, monkeypatch):
        self.now = self.device_done = 0.0
        self.recorded = None
        self.calls = 0
        for module in (timing, cuda_timing):
            monkeypatch.setattr(module.time, "perf_counter", lambda: self.now)
        monkeypatch.setattr(timing, "synchronize", self.synchronize)
        stream = SimpleNamespace(wait_stream=lambda other: None)
        for name, value in {
            "synchronize": self.synchronize,
            "Stream": lambda device: stream,
            "stream": lambda stream: nullcontext(),
            "current_stream": lambda device: stream,
            "CUDAGraph": lambda: SimpleNamespace(replay=self.replay),
            "graph": lambda graph, stream: self,
        }.items():
            monkeypatch.setattr(torch.cuda, name, value)

    def __enter__(self):
        self.recorded = 0

    def __exit__(self, *_):
        self.graph_calls, self.recorded = self.recorded, None

    def synchronize(self, device):
        self.now = max(self.now, self.device_done)

    def call(self):
        if self.recorded is not None:
            self.recorded += 1
            return
        self.calls += 1
        self.now += HOST
        self.device_done = max(self.device_done, self.now) + KERNEL

    def replay(self):
        self.now += HOST
        self.device_done = max(self.device_done, self.now) + self.graph_calls * KERNEL


@pytest.fixture
def cuda(monkeypatch):
    return PretendedCuda(monkeypatch)


def test_launches_do_not_include_the_time_of_the_device(cuda):
    assert make_launch_timer(cuda.call, DEVICE)() == pytest.approx(HOST)


def test_graphs_do_not_include_the_time_of_the_host(cuda):
    assert make_graph_timer(cuda.call, DEVICE)() == pytest.approx(KERNEL, rel=1e-2)


@pytest.mark.parametrize("make_part_timer", [make_launch_timer, make_graph_timer])
def test_calls_are_announced_before_they_run(cuda, make_part_timer):
    """Rotations in place overflow after a few hundred calls without new values."""
    announced = []
    make_part_timer(cuda.call, DEVICE, announced.append)()
    assert 0 < max(announced) <= 256
    if make_part_timer is make_launch_timer:
        assert sum(announced) == cuda.calls


def test_a_part_that_fails_has_a_reason_and_the_others_are_timed():
    def make_part_timer(call, device, before_batch):
        if call == "fails":
            raise RuntimeError("cannot be recorded\nin a graph")
        assert (device, before_batch) == (DEVICE, {"copy": None, "in place": "fill again"}[call])
        return lambda: 2e-6

    calls = {"copy": "copy", "in place": "in place", "compiled": "fails"}
    contestants = {name: {} for name in calls}
    implementations = {name: SimpleNamespace(in_place=name == "in place") for name in calls}
    inputs = SimpleNamespace(case=SimpleNamespace(device=DEVICE), prepare_in_place_rotations="fill again")
    seconds = rotation.time_part("graph", make_part_timer, calls, inputs, 3, implementations, contestants)
    assert seconds == {"copy": [2e-6] * 3, "in place": [2e-6] * 3}
    assert contestants["compiled"] == {"graph_reason": "RuntimeError: cannot be recorded"}


def test_the_parts_have_a_table_of_their_own():
    def quartiles(median):
        return {"median": median, "low": median, "high": median}

    facts = {"seconds": quartiles(9e-6), "gb_per_second": 1.0}
    contestants = {
        "copy": {"role": "limit", **facts, "launch": quartiles(3e-6), "graph": quartiles(4e-6)},
        "ropewalk": {
            "role": "ours",
            **facts,
            "launch": quartiles(5e-6),
            "graph": quartiles(8e-6),
            "graph_of_limit": quartiles(0.5),
        },
        "peer": {"role": "peer", **facts},
    }
    row = {"shape": "small", "batch": 1, "tokens": 1, "dtype": "float32", "bytes": 9, "rounds": 3}
    total, parts, *_ = rotation_tables([{**row, "contestants": contestants}])
    assert total.row_count == 3
    cells = [[str(cell) for cell in column.cells] for column in parts.columns]
    assert cells[0] == ["copy", "ropewalk"]
    assert cells[1] == ["3 µs", "5 µs"]
    assert cells[3] == ["4 µs", "8 µs"]
    assert cells[5] == ["", "0.50"]
    (total_only,) = rotation_tables([{**row, "contestants": {"peer": contestants["peer"]}}])[:1]
    assert total_only.row_count == 1
