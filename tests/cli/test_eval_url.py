"""`ropewalk eval --url`: a server in place of the model."""

from __future__ import annotations

import json

import pytest
from tests.helpers.completions_server import Greedy, serving

import ropewalk as rw


@pytest.fixture
def served(tiny_folder):
    model, tokenizer = rw.load(str(tiny_folder), dtype="float32")
    return Greedy(model, tokenizer)


@pytest.fixture
def asked(tiny_folder, tmp_path):
    path = tmp_path / "own.jsonl"
    lines = [{"context": f"w1 w2 w{i}", "input": "w4", "answers": "w5"} for i in range(20)]
    path.write_text("\n".join(json.dumps(line) for line in lines))
    task = f"generate:{path},max_new_tokens=6,metric=f1"
    return ["eval", tiny_folder, "--scaling", "none", "--lengths", "40", "--task", task, "--samples", "20"]


def answers(folder):
    return {s["index"]: s["answer"] for s in map(json.loads, (folder / "samples.jsonl").read_text().splitlines())}


def test_it_gives_the_answers_of_the_model_itself(run, asked, served, tmp_path):
    assert run(*asked, "--dtype", "float32", "--out", tmp_path / "here")[0] == 0
    with serving(served) as url:
        status, _, err = run(*asked, "--url", url, "--jobs", "3", "--out", tmp_path / "there")
        assert status == 0, err
        again = len(served.asked)
        assert run(*asked, "--url", url, "--out", tmp_path / "there")[0] == 0
    assert answers(tmp_path / "there") == answers(tmp_path / "here")
    assert len(answers(tmp_path / "there")) == 20
    assert len(served.asked) == again == 20, "the second run had nothing left to ask"


def test_results_of_a_server_are_not_taken_for_those_of_the_model(run, asked, served, tmp_path):
    assert run(*asked, "--dtype", "float32", "--out", tmp_path / "out")[0] == 0
    with serving(served) as url:
        status, _, err = run(*asked, "--url", url, "--out", tmp_path / "out")
    assert (status, len(err.strip().splitlines())) == (2, 1)


def test_what_a_server_answered_before_it_fell_is_kept(run, asked, served, tmp_path, monkeypatch):
    monkeypatch.setattr("ropewalk.completions._PAUSE", 0.0)
    fallen = []

    def falls(body):
        return (503, {}) if len(served.asked) >= 7 and not fallen else served(body)

    with serving(falls) as url:
        status, _, err = run(*asked, "--url", url, "--jobs", "1", "--out", tmp_path / "out")
        assert status == 1
        assert "did not answer" in err
        assert len(answers(tmp_path / "out")) == 7
        fallen.append(True)
        assert run(*asked, "--url", url, "--out", tmp_path / "out")[0] == 0
    assert len(answers(tmp_path / "out")) == 20
    assert len(served.asked) == 20


def test_a_task_that_needs_probabilities_is_refused(run, asked, words, served, tmp_path):
    with serving(served) as url:
        call = ["eval", asked[1], "--scaling", "none", "--lengths", "40", "--task", f"perplexity:{words}"]
        status, _, err = run(*call, "--samples", "1", "--url", url, "--out", tmp_path / "out")
    assert status == 2
    assert "only generate" in err


def test_one_scaling_and_no_ray(run, asked, served, tmp_path):
    with serving(served) as url:
        for more in (["--scaling", "yarn:factor=2"], ["--ray"]):
            status, _, err = run(*asked, *more, "--url", url, "--out", tmp_path / "out")
            assert status == 2
            assert "one scaling" in err
