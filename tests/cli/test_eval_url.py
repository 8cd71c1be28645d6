"""`ropewalk eval --url`: a server answers in place of a local model."""

from __future__ import annotations

import json

import pytest
from tests.helpers.completions_server import GreedyModel, run_server

import ropewalk as rw

SAMPLES = 8


@pytest.fixture
def server_model(tiny_folder):
    model, tokenizer = rw.load(str(tiny_folder), dtype="float32")
    return GreedyModel(model, tokenizer)


@pytest.fixture
def argv(tiny_folder, tmp_path):
    path = tmp_path / "questions.jsonl"
    rows = [{"context": f"w1 w2 w{i}", "input": "w4", "answers": "w5"} for i in range(SAMPLES)]
    path.write_text("\n".join(json.dumps(row) for row in rows))
    task = f"generate:{path},max_new_tokens=6,metric=f1"
    return ["eval", tiny_folder, "--scaling", "none", "--lengths", "40", "--task", task, "--samples", SAMPLES]


def read_answers(folder):
    samples = map(json.loads, (folder / "samples.jsonl").read_text().splitlines())
    return {sample["index"]: sample["answer"] for sample in samples}


def test_the_answers_are_those_of_the_local_model(run, argv, server_model, tmp_path):
    assert run(*argv, "--dtype", "float32", "--out", tmp_path / "local")[0] == 0
    with run_server(server_model) as url:
        status, _, err = run(*argv, "--url", url, "--jobs", "3", "--out", tmp_path / "server")
        assert status == 0, err
        requests = len(server_model.requests)
        assert run(*argv, "--url", url, "--out", tmp_path / "server")[0] == 0
    assert read_answers(tmp_path / "server") == read_answers(tmp_path / "local")
    assert len(read_answers(tmp_path / "server")) == SAMPLES
    assert len(server_model.requests) == requests == SAMPLES, "the second run needs no request"


def test_results_of_a_server_are_not_mixed_with_those_of_a_local_model(run, argv, server_model, tmp_path):
    assert run(*argv, "--dtype", "float32", "--out", tmp_path / "out")[0] == 0
    with run_server(server_model) as url:
        status, _, err = run(*argv, "--url", url, "--out", tmp_path / "out")
    assert (status, len(err.strip().splitlines())) == (2, 1)


def test_answers_before_a_server_fails_are_kept(run, argv, server_model, tmp_path, monkeypatch):
    monkeypatch.setattr("ropewalk.completions._FIRST_RETRY_DELAY", 0.0)
    is_repaired = []

    def fail_after_five(request):
        if len(server_model.requests) >= 5 and not is_repaired:
            return 503, {}
        return server_model(request)

    with run_server(fail_after_five) as url:
        status, _, err = run(*argv, "--url", url, "--jobs", "1", "--out", tmp_path / "out")
        assert status == 1
        assert "did not respond" in err
        assert len(read_answers(tmp_path / "out")) == 5
        is_repaired.append(True)
        assert run(*argv, "--url", url, "--out", tmp_path / "out")[0] == 0
    assert len(read_answers(tmp_path / "out")) == SAMPLES
    assert len(server_model.requests) == SAMPLES


def test_a_task_that_needs_log_probabilities_is_an_input_error(run, tiny_folder, text_file, server_model, tmp_path):
    options = ("--scaling", "none", "--lengths", "40", "--task", f"perplexity:{text_file}", "--samples", "1")
    with run_server(server_model) as url:
        status, _, err = run("eval", tiny_folder, *options, "--url", url, "--out", tmp_path / "out")
    assert status == 2
    assert "only generate" in err


@pytest.mark.parametrize("options", [["--scaling", "yarn:factor=2"], ["--ray"]])
def test_a_server_excludes_several_scalings_and_ray(run, argv, server_model, tmp_path, options):
    with run_server(server_model) as url:
        status, _, err = run(*argv, *options, "--url", url, "--out", tmp_path / "out")
    assert status == 2
    assert "one scaling" in err
