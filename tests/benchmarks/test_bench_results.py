from __future__ import annotations

import json
import platform
from datetime import datetime
from pathlib import Path

import pytest
import torch
from benchmarks.speed.device import current, device_name, find_device, slug, surroundings, versions
from benchmarks.speed.results import Results

from ropewalk.errors import InputError

CPU = torch.device("cpu")


def results(folder, bench="rotate", **about):
    return Results(folder, bench, CPU, f"ropewalk bench {bench}", ["rich", "no-such-package"], about)


def test_rows_are_kept_as_they_come_and_other_benches_stay(tmp_path):
    first = results(tmp_path, rotation="native")
    assert not first.path.exists()
    first.add({"a": 1})
    assert json.loads(first.path.read_text())["runs"][0]["rows"] == [{"a": 1}]
    first.add({"a": 2})
    results(tmp_path, "curve", model="m").add({"b": 3})
    before = json.loads(first.path.read_text())
    assert set(before) == {"device", "date", "runs"}
    one, other = before["runs"]
    assert (one["bench"], one["rows"], one["rotation"]) == ("rotate", [{"a": 1}, {"a": 2}], "native")
    assert (other["bench"], other["model"], other["command"]) == ("curve", "m", "ropewalk bench curve")
    again = results(tmp_path)
    again.add({"a": 4})
    document = json.loads(first.path.read_text())
    assert document["runs"][:2] == before["runs"]
    assert document["runs"][2]["rows"] == [{"a": 4}]
    assert again.document == {"device": document["device"], "date": document["date"], **document["runs"][2]}
    assert [path.name for path in tmp_path.iterdir()] == [first.path.name]


def test_two_that_measure_at_once_lose_nothing(tmp_path):
    one, other = results(tmp_path), results(tmp_path)
    for number in range(2):
        one.add({"one": number})
        other.add({"other": number})
    runs = json.loads(one.path.read_text())["runs"]
    assert sorted(map(str, (run["rows"] for run in runs))) == sorted(map(str, (one.run["rows"], other.run["rows"])))


def test_a_run_says_what_moves_its_numbers(tmp_path, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "7")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    run = results(tmp_path).run
    assert datetime.fromisoformat(run["started"]).tzinfo
    assert (run["system"], run["threads"]) == (platform.platform(), torch.get_num_threads())
    assert run["environment"]["OMP_NUM_THREADS"] == "7"
    assert "CUDA_VISIBLE_DEVICES" not in run["environment"]
    assert run["large_pages"] in ("always", "madvise", "never", None)


@pytest.mark.parametrize(("content", "mode"), [("always [madvise] never\n", "madvise"), ("", None)])
def test_the_mode_of_large_pages(content, mode, monkeypatch):
    monkeypatch.setattr(Path, "read_text", lambda *_, **__: content)
    assert surroundings()["large_pages"] == mode


def test_the_device_of_a_case_is_the_current_one(monkeypatch):
    made = []
    monkeypatch.setattr(torch.cuda, "device", made.append)
    current(torch.device("cuda:1"))
    current(CPU)
    assert made == [torch.device("cuda:1")]


def test_the_file_is_of_the_device_and_the_day(tmp_path):
    kept = results(tmp_path)
    assert kept.path.name == f"{slug(device_name(CPU))}-{kept.document['date']}.json"
    assert f"{torch.get_num_threads()} thread" in kept.document["device"]


@pytest.mark.parametrize("content", ["[1]", "{", "\x00", '{"rotate": {}}', '{"runs": [1]}'])
def test_a_file_that_is_something_else_is_left_alone(tmp_path, content):
    path = results(tmp_path).path
    path.write_text(content)
    with pytest.raises(InputError, match="out"):
        results(tmp_path)
    assert path.read_text() == content


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("Intel(R) Xeon(R) Processor, 2 threads", "intel-xeon-processor-2-threads"),
        ("NVIDIA H100 80GB HBM3", "nvidia-h100-80gb-hbm3"),
        ("AMD EPYC 7763 64-Core Processor, 1 thread", "amd-epyc-7763-64-core-processor-1-thread"),
    ],
)
def test_slugs(name, expected):
    assert slug(name) == expected


def test_versions_are_of_what_is_here():
    known = versions(["torch", "no-such-package"])
    assert known["torch"] == torch.__version__
    assert "no-such-package" not in known
    assert known["python"]


@pytest.mark.parametrize("name", ["cuda:99", "nothing", "cpu:x", "meta", "hpu"])
def test_a_device_that_is_not_here(name):
    with pytest.raises(InputError, match="device"):
        find_device(name)
