from __future__ import annotations

import io
import json
import re

import pytest
from rich.console import Console
from tests.helpers.fake_results import MODEL, describe_cell, write_mixed_store, write_store

from ropewalk.report.evaluation import results_document, summary_table


@pytest.fixture
def cells(tmp_path):
    with write_mixed_store(tmp_path) as store:
        return store.cells()


def render(cells, width=120):
    console = Console(width=width, record=True, file=io.StringIO())
    console.print(summary_table(cells))
    return console.export_text()


def parse_table(text):
    """Return (task, length, values) of each row; the rows of a task name it once."""
    rows, task = [], ""
    for line in text.splitlines():
        if match := re.match(r" (\S.*?)? +(\d+k) (.*)", line):
            task = match[1] or task
            rows.append((task, match[2], match[3].split()))
    return rows


def test_the_table_shows_the_stored_values_and_marks_the_best_of_each_row(cells):
    text = render(cells)
    assert re.search(r"task +length +none +yarn:factor=2 +dynamic-yarn \(stepped\)", text)
    assert parse_table(text) == [
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


def test_values_are_not_cut_in_a_narrow_terminal(cells):
    values = [value for _, _, row in parse_table(render(cells, width=60)) for value in row]
    assert {"100.0*", "10.40", "80.00", "26.2*"} <= set(values)


def test_equal_values_have_no_best(tmp_path):
    cells = [(describe_cell("needle", scaling, 4096, 1), [1]) for scaling in ("none", "yarn:factor=2")]
    with write_store(tmp_path, cells) as store:
        assert [row[2] for row in parse_table(render(store.cells()))] == [["100.0", "100.0"]]


def test_names_are_not_read_as_markup(tmp_path):
    with write_store(tmp_path, [(describe_cell("needle:text=[bold].txt", "none", 4096, 1), [1])]) as store:
        assert "[bold].txt" in render(store.cells())


def test_the_document_has_every_cell_and_is_ready_for_json(tmp_path):
    with write_mixed_store(tmp_path) as store:
        document = json.loads(json.dumps(results_document(store, store.cells())))
        assert document["runs"] == store.runs()
    assert document["model"] == MODEL
    assert len(document["cells"]) == 24
    assert document["cells"][5] == {
        "task": "passkey", "length": 16384, "scaling": "dynamic-yarn", "policy": "stepped", "seed": 0,
        "samples": 2, "chat": False, "summary": None, "done": 1,
    }  # fmt: skip
    assert document["cells"][3]["summary"] == {"found": 1.0}
