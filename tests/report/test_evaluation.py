from __future__ import annotations

import io
import json
import re

import pytest
from rich.console import Console
from tests.helpers.fake_results import MODEL, description, mixed, outcome, store

from ropewalk.report.evaluation import by_task, columns, document, rows, summary_table
from ropewalk.report.suites import bin_rows, group_rows


@pytest.fixture
def cells(tmp_path):
    with mixed(tmp_path) as folder:
        return folder.cells()


def printed(cells, width=120):
    console = Console(width=width, record=True, file=io.StringIO())
    console.print(summary_table(cells))
    return console.export_text()


def lines(text):
    """The values of each line, under the task that it belongs to."""
    found, task = [], ""
    for line in text.splitlines():
        if match := re.match(r" (\S.*?)? +(\d+k) (.*)", line):
            task = match[1] or task
            found.append((task, match[2], match[3].split()))
    return found


def test_the_table_has_the_values_of_the_store_and_marks_the_best_of_each_row(cells):
    assert columns(cells) == ["none", "yarn:factor=2", "dynamic-yarn (stepped)"]
    assert lines(printed(cells)) == [
        ("passkey (found, %)", "8k", ["100.0*", "50.0", "100.0*"]),
        ("passkey (found, %)", "16k", ["0.0", "100.0*", "1/2"]),
        ("perplexity (ppl)", "8k", ["10.00*", "10.40", "10.00*"]),
        ("perplexity (ppl)", "16k", ["80.00", "9.88", "9.50*"]),
        ("ruler:vt (score, %)", "8k", ["50.0*", "40.0", "50.0*"]),
        ("ruler:vt (score, %)", "16k", ["10.0", "30.0", "35.0*"]),
        ("ruler:cwe (score, %)", "8k", ["25.0*", "20.0", "25.0*"]),
        ("ruler:cwe (score, %)", "16k", ["5.0", "15.0", "17.5*"]),
        ("ruler, mean of 2 (score, %)", "8k", ["37.5*", "30.0", "37.5*"]),
        ("ruler, mean of 2 (score, %)", "16k", ["7.5", "22.5", "26.2*"]),
    ]


def test_values_stay_whole_in_a_narrow_terminal(cells):
    values = [value for _, _, found in lines(printed(cells, width=60)) for value in found]
    assert {"100.0*", "10.40", "80.00", "26.2*"} <= set(values)


def test_tasks_that_were_asked_in_other_ways_have_no_mean_in_common(tmp_path):
    cells = [
        (description("ruler:task=vt", "none", 4096, 1, main="score"), [1]),
        (description("ruler:task=cwe", "none", 4096, 1, main="score"), [0]),
        (description("ruler:task=fwe", "none", 4096, 2, main="score"), [0, 0]),
    ]
    with store(tmp_path, cells) as folder:
        means = [row for row in rows(folder.cells()) if row.members]
    assert [(row.members, row.shown("none")) for row in means] == [(("ruler:task=vt", "ruler:task=cwe"), "50.0")]


def test_values_that_are_all_the_same_have_no_best(tmp_path):
    with store(tmp_path, [(description("needle", each, 4096, 1), [1]) for each in ("none", "yarn:factor=2")]) as folder:
        assert "*" not in printed(folder.cells()).splitlines()[-3]


def test_a_suite_has_no_mean_before_all_of_its_tasks_are_done(tmp_path):
    halves = [(description(f"ruler:{name}", "none", 4096, 2, main="score"), given)
              for name, given in (("vt", [1, 1]), ("cwe", [1]))]  # fmt: skip
    with store(tmp_path, halves) as folder:
        mean = rows(folder.cells())[-1]
    assert (mean.task, mean.members, mean.shown("none")) == ("ruler, mean of 2", ("ruler:vt", "ruler:cwe"), "3/4")


def test_one_task_asked_in_two_ways_is_two_tasks(tmp_path):
    ways = [(description("passkey", "none", 4096, 2, seed=seed), [seed, 1]) for seed in (0, 1)]
    with store(tmp_path, ways) as folder:
        cells = folder.cells()
    assert list(by_task(cells)) == [f"passkey (2 samples, seed {seed}, version 1)" for seed in (0, 1)]
    assert [row.shown("none") for row in rows(cells)] == ["50.0", "100.0"]


def test_names_are_shown_as_they_are_and_not_as_markup(tmp_path):
    with store(tmp_path, [(description("needle:text=[bold].txt", "none", 4096, 1), [1])]) as folder:
        assert "[bold].txt" in printed(folder.cells())


def test_the_document_has_every_cell_and_is_ready_for_json(tmp_path):
    with mixed(tmp_path) as folder:
        made = json.loads(json.dumps(document(folder, folder.cells())))
        assert made["runs"] == folder.runs()
    assert made["model"] == MODEL
    assert len(made["cells"]) == 24
    assert made["cells"][5] == {
        "task": "passkey", "length": 16384, "scaling": "dynamic-yarn", "policy": "stepped", "seed": 0,
        "samples": 2, "summary": None, "done": 1,
    }  # fmt: skip
    assert made["cells"][3]["summary"] == {"found": 1.0}


def test_groups_and_bins_are_means_of_tasks(tmp_path):
    def cell(task, group, scores):
        given = [
            outcome(at, score, main="score", about={"group": group, "bin": name})
            for at, (score, name) in enumerate(zip(scores, ("4-8k", "0-4k", "0-4k"), strict=True))
        ]
        return description(f"longbench:{task}", "none", 8192, 3, main="score"), given

    given = [cell("a", "multi", (1.0, 0.0, 0.5)), cell("b", "multi", (0.5, 0.5, 0.5)), cell("c", "code", (0, 0, 0))]
    with store(tmp_path, given) as folder:
        tasks = by_task(folder.cells())
    assert {row.task: row.shown("none") for row in group_rows(tasks)} == {"multi, mean of 2": "50.0", "code": "0.0"}
    assert {row.task: row.shown("none") for row in bin_rows(tasks)} == {
        "0-4k, mean of 3": "25.0", "4-8k, mean of 3": "50.0",
    }  # fmt: skip
