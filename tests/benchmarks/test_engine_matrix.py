from __future__ import annotations

from pathlib import Path

import pytest
from benchmarks.engine_matrix import render_page

from ropewalk.serving.support import read_verify_results

ROOT = Path(__file__).parents[2]
RESULT = {
    "engine": "vllm",
    "version": "0.32.0",
    "scaling": "yarn:factor=2",
    "length": 12_000,
    "ratio": 42.0,
    "verdict": "fail",
    "date": "2026-01-02",
}


def test_the_page_in_docs_is_up_to_date():
    results = read_verify_results(ROOT / "benchmarks" / "results" / "verify")
    assert results
    assert (ROOT / "docs" / "matrix.md").read_text() == render_page(results) + "\n"


@pytest.fixture(scope="module")
def page():
    return render_page([RESULT])


def test_a_failed_verification_is_shown_with_its_numbers(page):
    assert "`yarn:factor=2` | native | 12,000 | 42 | fail | 2026-01-02" in page
    assert page.count("✗") == 2  # in the legend and in the matrix


def test_all_rows_of_a_table_have_the_same_number_of_cells(page):
    tables = [part.splitlines() for part in page.split("\n\n") if part.startswith("|")]
    assert len(tables) == 2
    for table in tables:
        assert len({line.count(" |") for line in table}) == 1
