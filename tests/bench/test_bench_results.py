from __future__ import annotations

import json

import pytest
import torch

from ropewalk.bench.device import device_name, find_device, slug, versions
from ropewalk.bench.results import Results
from ropewalk.errors import InputError

CPU = torch.device("cpu")


def results(folder, bench="rotate", **about):
    return Results(folder, bench, CPU, f"ropewalk bench {bench}", ["rich", "no-such-package"], about)


def test_rows_are_kept_as_they_come_and_other_benches_stay(tmp_path):
    first = results(tmp_path, rotation="native")
    assert not first.path.exists()
    first.add({"a": 1})
    assert json.loads(first.path.read_text())["rotate"]["rows"] == [{"a": 1}]
    first.add({"a": 2})
    results(tmp_path, "curve", model="m").add({"b": 3})
    document = json.loads(first.path.read_text())
    assert set(document) == {"device", "date", "rotate", "curve"}
    assert document["rotate"]["rows"] == [{"a": 1}, {"a": 2}]
    assert document["rotate"]["rotation"] == "native"
    assert (document["curve"]["model"], document["curve"]["command"]) == ("m", "ropewalk bench curve")
    again = results(tmp_path)
    again.add({"a": 4})
    document = json.loads(first.path.read_text())
    assert document["rotate"]["rows"] == [{"a": 4}]
    assert document["curve"]["rows"] == [{"b": 3}]
    assert again.document == {key: document[key] for key in ("device", "date", "rotate")}
    assert [path.name for path in tmp_path.iterdir()] == [first.path.name]


def test_the_file_is_of_the_device_and_the_day(tmp_path):
    kept = results(tmp_path)
    assert kept.path.name == f"{slug(device_name(CPU))}-{kept.document['date']}.json"
    assert f"{torch.get_num_threads()} thread" in kept.document["device"]


@pytest.mark.parametrize("content", ["[1]", "{", "\x00"])
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


@pytest.mark.parametrize("name", ["cuda:99", "nothing", "cpu:x"])
def test_a_device_that_is_not_here(name):
    with pytest.raises(InputError, match="device"):
        find_device(name)
