"""The matrix of methods and engines."""

from __future__ import annotations

from pathlib import Path

from ropewalk.report.matrix import matrix, matrix_page, read_verified

ROOT = Path(__file__).parents[2]
ROW = {
    "engine": "vllm",
    "version": "0.32.0",
    "scaling": "yarn:factor=2",
    "length": 12_000,
    "ratio": 42.0,
    "date": "2026-01-02",
}


def test_the_page_of_the_docs_is_what_the_registry_and_the_kept_results_say():
    kept = read_verified(ROOT / "benchmarks" / "results" / "verify")
    assert kept, "the last run of verify is kept"
    assert (ROOT / "docs" / "matrix.md").read_text() == matrix_page(kept)


def test_only_what_passed_is_proven():
    def proven(verdict):
        cells = matrix([{**ROW, "verdict": verdict}])
        return {(cell.engine, cell.method) for cell in cells if cell.proven}

    assert proven("pass") == {("vllm", "yarn")}
    assert proven("fail") == proven("unclear") == set()
    assert [cell.method for cell in matrix([{**ROW, "verdict": "fail"}]) if cell.refuted] == ["yarn"]
    assert "`yarn:factor=2` | own words | 12,000 | 42 | fail | 2026-01-02" in matrix_page([{**ROW, "verdict": "fail"}])


def test_every_refusal_but_a_tutorials_names_something_nearer():
    cells = [cell for cell in matrix() if cell.how == "no"]
    assert cells
    assert all(cell.detail for cell in cells), [cell for cell in cells if not cell.detail]


def test_every_row_of_a_table_has_its_columns():
    tables = [
        part.split("\n") for part in matrix_page([{**ROW, "verdict": "pass"}]).split("\n\n") if part.startswith("|")
    ]
    assert len(tables) == 2
    for table in tables:
        assert len({line.count(" |") for line in table if line}) == 1
