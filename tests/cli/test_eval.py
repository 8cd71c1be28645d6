"""`ropewalk eval` on a tiny model."""

from __future__ import annotations

import copy
import csv
import json
import re
import shutil
import signal
import subprocess
import sys

import pytest


@pytest.fixture
def questions(tmp_path):
    """A file of two questions for the task `generate`."""
    path = tmp_path / "questions.jsonl"
    rows = [{"context": "w1 w2 w3", "input": "w4", "answers": "w5"}, {"context": "w6", "input": "w7", "answers": "w8"}]
    path.write_text("\n".join(json.dumps(row) for row in rows))
    return path


@pytest.fixture
def argv(tiny_folder, text_file, questions, tmp_path):
    """The arguments of an evaluation of eight cells with two samples each."""
    return [
        *("eval", tiny_folder, "--scaling", "none", "--scaling", "dynamic-yarn", "--lengths", "40,90"),
        *("--task", f"perplexity:{text_file}", "--task", f"generate:{questions},max_new_tokens=4,metric=f1+bleu"),
        *("--samples", "2", "--out", tmp_path / "out"),
    ]


def replace_option(argv, option, value):
    argv[argv.index(option) + 1] = value


def test_a_run_prints_a_table_and_writes_samples_and_scores(run, argv, tmp_path):
    status, out, err = run(*argv)
    assert status == 0, err
    assert "none" in out
    assert "dynamic-yarn (stepped)" in out
    assert "ropewalk report" in out
    assert "8 of 8 cells" in err
    samples = [json.loads(line) for line in (tmp_path / "out" / "samples.jsonl").read_text().splitlines()]
    assert len(samples) == 16
    assert {sample["length"] for sample in samples} == {40, 90}
    with open(tmp_path / "out" / "cells.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert {row["score"] for row in rows} == {"ppl", "nll", "ppl_last", "f1", "bleu"}
    assert {row["samples"] for row in rows} == {"2"}


def test_a_second_run_has_the_same_results_and_computes_nothing(run, argv):
    first, second = run(*argv, "--json"), run(*argv, "--json")
    assert first[0] == second[0] == 0
    assert json.loads(first[1])["cells"] == json.loads(second[1])["cells"]
    assert "of 8 cells:" in first[2]
    assert "of 8 cells:" not in second[2]
    cells = json.loads(first[1])["cells"]
    short = [cell["summary"] for cell in cells if cell["length"] == 40]
    long = [cell["summary"] for cell in cells if cell["length"] == 90 and "perplexity" in cell["task"]]
    assert short[0] == short[1], "up to the original length a dynamic scaling changes nothing"
    assert long[0]["ppl"] != long[1]["ppl"], "past the original length it does"


def test_two_workers_have_the_same_results_as_one(run, argv, tmp_path):
    expected = json.loads(run(*argv, "--json")[1])["cells"]
    replace_option(argv, "--out", tmp_path / "two")
    status, out, err = run(*argv, "--json", "--jobs", "2")
    assert status == 0, err
    assert json.loads(out)["cells"] == expected


def test_an_interrupted_run_keeps_its_samples_and_can_be_continued(argv, run, tmp_path):
    replace_option(argv, "--samples", "12")
    # The handler is set explicitly, because a background job of a shell script ignores SIGINT.
    set_handler = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler); "
    command = [sys.executable, "-c", f"{set_handler}from ropewalk.cli import main; main()", *map(str, argv)]
    with subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True) as process:
        for line in process.stderr:
            if "1 of 8 cells" in line:
                process.send_signal(signal.SIGINT)
                break
        message = process.stderr.read()
        assert process.wait() == 130
    assert "finished samples are safe in" in message
    assert "Traceback" not in message
    status, _, err = run(*argv)
    assert status == 0
    assert "1 of 8 cells:" not in err
    assert "8 of 8 cells" in err


@pytest.mark.parametrize(
    ("option", "value", "message"),
    [
        ("--task", "passkye", "task: got 'passkye'; expected .*passkey"),
        ("--task", "generate:QUESTIONS,metric=f7", "metric: got 'f7'; expected exact-match, "),
        ("--task", "generate:nowhere.jsonl", r"generate: file: got 'nowhere.jsonl'; .*No such file"),
        ("--task", "perplexity:no.txt", "text: got 'no.txt'"),
        ("--lengths", "40,20000", "lengths: got 20000; expected from 2 to the 300 tokens of the text"),
        ("--lengths", "", r"lengths: got \[\]; expected at least one"),
        ("--samples", "0", "samples: got 0; expected a whole number"),
        ("--jobs", "-1", "jobs: got -1"),
        ("--policy", "never", "policy: got 'never'"),
        ("--scaling", "yarn", "yarn: factor: got None"),
        ("--dtype", "int3", "dtype: got 'int3'"),
        ("--ray", "127.0.0.1:1", "ray: got '127.0.0.1:1 .*refused.*; expected auto, or HOST:PORT"),
        ("--out", "/proc/no", "out: got '/proc/no"),
    ],
)
def test_wrong_values_are_input_errors(run, tiny_folder, text_file, questions, tmp_path, option, value, message):
    options = {"--scaling": "none", "--lengths": "40", "--task": f"perplexity:{text_file}", "--samples": "2"}
    options |= {"--out": tmp_path / "out", option: value.replace("QUESTIONS", str(questions))}
    status, out, err = run("eval", tiny_folder, *(part for pair in options.items() for part in pair))
    assert status == 2
    assert out == ""
    assert re.search(message, err), err
    assert "Traceback" not in err
    assert len([line for line in err.splitlines() if line.startswith("ropewalk:")]) == 1


def test_a_chat_template_that_the_model_lacks_is_one_line(run, argv):
    status, out, err = run(*argv, "--chat", "on")
    assert (status, out) == (2, "")
    assert re.search(r"error: chat: got 'on for .*, which has no chat template'; expected auto or off$", err, re.M)
    status, _, err = run(*argv, "--chat", "of")
    assert status == 2
    assert "chat: got 'of'; expected auto, on, off (did you mean off?)" in err


def test_a_folder_with_results_of_another_model_is_an_input_error(run, argv, tiny_folder, tmp_path, tiny):
    assert run(*argv)[0] == 0
    other = copy.deepcopy(tiny)
    other.lm_head.weight.data += 0.1
    shutil.copytree(tiny_folder, tmp_path / "other")
    other.save_pretrained(tmp_path / "other")
    argv[1] = tmp_path / "other"
    status, _, err = run(*argv)
    assert status == 2
    assert "of another run: digest" in err
