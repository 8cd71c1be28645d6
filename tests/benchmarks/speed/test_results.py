from __future__ import annotations

import json
from datetime import datetime

import pytest
import torch
from benchmarks.speed.environment import describe_device, file_name_for
from benchmarks.speed.results import NotMeasuredError, ResultsFile, describe_failure

from ropewalk.errors import InputError

CPU = torch.device("cpu")


def open_results(folder, bench="rotate", **details):
    return ResultsFile(folder, bench, CPU, f"benchmarks.speed {bench}", ["rich", "no-such-package"], details)


def test_rows_are_written_at_once_and_earlier_runs_stay(tmp_path):
    first = open_results(tmp_path, rotation="native")
    assert not first.path.exists()
    first.add_row({"a": 1})
    assert json.loads(first.path.read_text())["runs"][0]["rows"] == [{"a": 1}]
    first.add_row({"a": 2})
    open_results(tmp_path, "curve", model="m").add_row({"b": 3})
    before = json.loads(first.path.read_text())
    assert set(before) == {"device", "date", "runs"}
    rotate, curve = before["runs"]
    assert (rotate["bench"], rotate["rows"], rotate["rotation"]) == ("rotate", [{"a": 1}, {"a": 2}], "native")
    assert (curve["bench"], curve["model"], curve["command"]) == ("curve", "m", "benchmarks.speed curve")
    third = open_results(tmp_path)
    third.add_row({"a": 4})
    document = json.loads(first.path.read_text())
    assert document["runs"][:2] == before["runs"]
    assert document["runs"][2]["rows"] == [{"a": 4}]
    assert third.document == {"device": document["device"], "date": document["date"], **document["runs"][2]}
    assert [path.name for path in tmp_path.iterdir()] == [first.path.name]


def test_two_runs_at_the_same_time_keep_all_rows(tmp_path):
    one, other = open_results(tmp_path), open_results(tmp_path)
    for number in range(2):
        one.add_row({"one": number})
        other.add_row({"other": number})
    runs = json.loads(one.path.read_text())["runs"]
    assert sorted(map(str, (run["rows"] for run in runs))) == sorted(map(str, (one.run["rows"], other.run["rows"])))


def test_a_run_records_when_it_started_and_the_settings_of_the_system(tmp_path):
    run = open_results(tmp_path).run
    assert datetime.fromisoformat(run["started"]).tzinfo
    assert {"versions", "system", "threads", "environment", "large_pages"} <= set(run)


def test_the_file_is_named_after_the_device_and_the_day(tmp_path):
    results = open_results(tmp_path)
    assert results.path.name == f"{file_name_for(describe_device(CPU))}-{results.document['date']}.json"
    assert f"{torch.get_num_threads()} thread" in results.document["device"]


@pytest.mark.parametrize("content", ["[1]", "{", "\x00", '{"rotate": {}}', '{"runs": [1]}'])
def test_a_file_with_other_content_is_refused_and_not_changed(tmp_path, content):
    path = open_results(tmp_path).path
    path.write_text(content)
    with pytest.raises(InputError, match="out"):
        open_results(tmp_path)
    assert path.read_text() == content


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (ValueError("no such cache\nat all"), "ValueError: no such cache"),
        (ValueError(), "ValueError: "),
        (NotMeasuredError("not installed"), "not installed"),
        (RuntimeError("x" * 300), f"RuntimeError: {'x' * 200}"),
    ],
)
def test_a_failure_is_described_in_one_line(error, reason):
    assert describe_failure(error) == reason
