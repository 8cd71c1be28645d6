from __future__ import annotations

import json

import pytest
from tests.helpers.fake_results import describe_cell, make_sample, write_store

MODEL = {"model": "gone", "digest": "sha256:01", "dtype": "bfloat16"}


@pytest.fixture
def folder(tmp_path):
    sample = make_sample(0, 1.0, answer="12345", about={"depth": 0.5})
    with write_store(tmp_path / "out", [(describe_cell("passkey", "none", 4096, 1), [sample])], MODEL) as store:
        return store.folder


def test_the_paths_of_the_written_files_are_printed(run, folder):
    status, out, err = run("report", folder)
    assert (status, err) == (0, "")
    paths = [folder / "report.html", folder / "passkey-by-depth.png"]
    assert out.splitlines() == [f"Report: {paths[0]}", f"Picture: {paths[1]}"]
    assert all(path.stat().st_size for path in paths)


def test_out_chooses_another_file_and_json_has_the_results(run, folder, tmp_path):
    page = tmp_path / "elsewhere" / "page.html"
    status, out, _ = run("report", folder, "--out", page, "--json")
    document = json.loads(out)
    assert status == 0
    assert document["files"] == [str(page), str(page.with_name("passkey-by-depth.png"))]
    assert document["cells"][0]["summary"] == {"found": 1.0}
    assert page.exists()
    assert not (folder / "report.html").exists()


def test_wrong_paths_are_input_errors_and_create_nothing(run, tmp_path, folder):
    for argv in ((tmp_path,), (tmp_path / "nowhere",), (folder, "--out", folder / "results.sqlite")):
        status, out, err = run("report", *argv)
        assert (status, out, err.count("\n")) == (2, "", 1)
        assert "; expected " in err
    assert not (tmp_path / "nowhere").exists()
