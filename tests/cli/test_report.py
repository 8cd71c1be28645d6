from __future__ import annotations

import json

import pytest

from ropewalk.evaluate.evaluation_store import EvaluationStore

CELL = {
    "task": "passkey", "task_name": "passkey", "task_version": 1, "task_options": {}, "fingerprint": {},
    "main": "found", "better": "higher", "share": True, "scaling": "none", "scaling_options": {}, "policy": None,
    "column": "none", "length": 4096, "samples": 1, "seed": 0,
}  # fmt: skip
SAMPLE = {
    "index": 0, "prompt": "ab", "tokens": 4096, "answer": "12345", "references": ["12345"], "scores": {"found": 1.0},
    "about": {"depth": 0.5}, "seconds": 0.1,
}  # fmt: skip


@pytest.fixture
def folder(tmp_path):
    path = tmp_path / "out"
    with EvaluationStore(path, {"model": "gone", "digest": "sha256:01", "dtype": "bfloat16"}) as store:
        store.begin("ropewalk eval smollm2", {"python": "3.11"}, {"key": CELL})
        store.add("key", SAMPLE)
        store.finish("key", {"found": 1.0})
    return path


def test_it_prints_the_paths_it_wrote(run, folder):
    status, out, err = run("report", folder)
    assert (status, err) == (0, "")
    paths = [folder / "report.html", folder / "passkey-by-depth.png"]
    assert out.splitlines() == [f"Report: {paths[0]}", f"Picture: {paths[1]}"]
    assert all(path.stat().st_size for path in paths)


def test_as_json_and_to_another_place(run, folder, tmp_path):
    page = tmp_path / "elsewhere" / "page.html"
    status, out, _ = run("report", folder, "--out", page, "--json")
    document = json.loads(out)
    assert status == 0
    assert document["files"] == [str(page), str(page.with_name("passkey-by-depth.png"))]
    assert document["cells"][0]["summary"] == {"found": 1.0}
    assert page.exists()
    assert not (folder / "report.html").exists()


def test_a_folder_without_an_evaluation_is_one_line(run, tmp_path, folder):
    for arguments in ((tmp_path,), (tmp_path / "nowhere",), (folder, "--out", folder / "results.sqlite")):
        status, out, err = run("report", *arguments)
        assert (status, out, err.count("\n")) == (2, "", 1)
        assert "allowed:" in err
    assert not (tmp_path / "nowhere").exists()
