"""`ropewalk eval`, as a user types it, on a tiny model."""

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

from ropewalk.cli import _completed


@pytest.fixture
def own(tmp_path):
    path = tmp_path / "own.jsonl"
    lines = [{"context": "w1 w2 w3", "input": "w4", "answers": "w5"}, {"context": "w6", "input": "w7", "answers": "w8"}]
    path.write_text("\n".join(json.dumps(line) for line in lines))
    return path


@pytest.fixture
def asked(tiny_folder, words, own, tmp_path):
    """The arguments of an evaluation of six cells."""
    return [
        *("eval", tiny_folder, "--scaling", "none", "--scaling", "dynamic-yarn", "--lengths", "40,90"),
        *("--task", f"perplexity:{words}", "--task", f"generate:{own},max_new_tokens=4,metric=f1+bleu"),
        *("--samples", "2", "--out", tmp_path / "out"),
    ]


def test_a_table_a_database_and_files(run, asked, tmp_path):
    status, out, err = run(*asked)
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


def test_json_and_the_same_command_again(run, asked):
    first, again = run(*asked, "--json"), run(*asked, "--json")
    assert first[0] == again[0] == 0
    assert json.loads(first[1])["cells"] == json.loads(again[1])["cells"]
    assert "of 8 cells:" in first[2]
    assert "of 8 cells:" not in again[2], "nothing was left to do"
    document = json.loads(first[1])
    short = [cell["summary"] for cell in document["cells"] if cell["length"] == 40]
    long = [cell["summary"] for cell in document["cells"] if cell["length"] == 90 and "perplexity" in cell["task"]]
    assert short[0] == short[1], "within the trained length a dynamic scaling changes nothing"
    assert long[0]["ppl"] != long[1]["ppl"], "past it, it does"


def test_workers_give_the_same(run, asked, tmp_path):
    in_process_executor = json.loads(run(*asked, "--json")[1])
    asked[asked.index("--out") + 1] = tmp_path / "two"
    status, out, err = run(*asked, "--json", "--jobs", "2")
    assert status == 0, err
    assert json.loads(out)["cells"] == in_process_executor["cells"]


def test_interrupted_it_goes_on(asked, run, tmp_path):
    # A job in the background of a script is started deaf to Ctrl-C.
    hears = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler); "
    command = [sys.executable, "-c", f"{hears}from ropewalk.cli import main; main()", *map(str, asked)]
    command[command.index("--samples") + 1] = "40"
    with subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True) as process:
        for line in process.stderr:
            if "1 of 8 cells" in line:
                process.send_signal(signal.SIGINT)
                break
        said = process.stderr.read()
        assert process.wait() == 130
    assert "what is done is safe in" in said
    assert "Traceback" not in said
    asked[asked.index("--samples") + 1] = "40"
    status, _, err = run(*asked)
    assert status == 0
    assert "1 of 8 cells:" not in err
    assert "8 of 8 cells" in err


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("--task", "passkye"), "task: got 'passkye'; expected .*passkey"),
        (("--task", "generate:OWN,metric=f7"), "metric: got 'f7'; expected exact-match, "),
        (("--task", "generate:nowhere.jsonl"), r"generate: file: got 'nowhere.jsonl \(No such file"),
        (("--task", "perplexity:no.txt"), "text: got 'no.txt'"),
        (("--lengths", "40,20000"), "lengths: got 20000; expected from 2 to the 300 tokens of the text"),
        (("--lengths", ""), "lengths: got 'none'; expected at least one"),
        (("--samples", "0"), "samples: got 0; expected a whole number"),
        (("--jobs", "-1"), "jobs: got -1"),
        (("--policy", "never"), "policy: got 'never'"),
        (("--scaling", "yarn"), "yarn: factor: got None"),
        (("--dtype", "int3"), "dtype: got 'int3'"),
        (("--ray", "127.0.0.1:1"), "ray: got '127.0.0.1:1 .*refused.*; expected auto, or HOST:PORT"),
        (("--out", "/proc/no"), "out: got '/proc/no"),
    ],
)
def test_bad_input_in_one_line(run, tiny_folder, words, own, tmp_path, change, message):
    asked = {"--scaling": "none", "--lengths": "40", "--task": f"perplexity:{words}", "--samples": "2"}
    asked |= {"--out": tmp_path / "out", change[0]: change[1].replace("OWN", str(own))}
    status, out, err = run("eval", tiny_folder, *(word for option in asked.items() for word in option))
    assert status == 2
    assert out == ""
    assert re.search(message, err), err
    assert "Traceback" not in err
    assert len([line for line in err.splitlines() if line.startswith("ropewalk:")]) == 1


def test_a_folder_of_another_model(run, asked, tiny_folder, tmp_path, tiny):
    assert run(*asked)[0] == 0
    other = copy.deepcopy(tiny)
    other.lm_head.weight.data += 0.1
    shutil.copytree(tiny_folder, tmp_path / "other")
    other.save_pretrained(tmp_path / "other")
    asked[1] = tmp_path / "other"
    status, _, err = run(*asked)
    assert status == 2
    assert "of another run (digest" in err


def test_ray_may_stand_alone():
    assert _completed(["eval", "m", "--ray"]) == ["eval", "m", "--ray", "auto"]
    assert _completed(["eval", "--ray", "--jobs", "2"]) == ["eval", "--ray", "auto", "--jobs", "2"]
    assert _completed(["eval", "--ray", "1.2.3.4:5", "m"]) == ["eval", "--ray", "1.2.3.4:5", "m"]
