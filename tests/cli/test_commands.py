from __future__ import annotations

import json
import subprocess
import sys

import numpy as np
import pytest

import ropewalk as rw
from ropewalk.cli.demo import LENGTHS, SCALINGS
from ropewalk.evaluate.curve_store import CurveStore

CURVE = {"model", "text", "dtype", "rows"}
ROW = {"scaling", "length", "ppl", "ppl_last", "nll", "tokens", "seconds"}


@pytest.fixture
def curve(run, tiny_folder, words, tmp_path):
    def _call(*more, scalings=("none", "yarn:factor=2"), lengths="32,100"):
        specs = [part for spec in scalings for part in ("--scaling", spec)]
        where = ("--lengths", lengths, "--text", words, "--out", tmp_path / "out", "--dtype", "float32")
        return run("curve", tiny_folder, *specs, *where, *more)

    return _call


def test_frequencies_as_json(run, tiny_folder):
    status, out, _ = run("frequencies", tiny_folder, "--scaling", "yarn:factor=4", "--json")
    document = json.loads(out)
    expected = rw.YaRN(factor=4).frequencies(rw.Rope(16, 10_000.0, 64))
    assert status == 0
    assert document["scaling"]["name"] == "yarn"
    assert document["rope"] == {"dim": 16, "base": 10_000.0, "original_length": 64}
    assert document["length"] is None
    assert np.array_equal(document["inv_freq"], expected.inv_freq)
    assert (document["attention_factor"], document["softmax_factor"]) == (expected.attention_factor, 1.0)


def test_frequencies_of_layer_types_that_differ(run, tmp_path):
    config = {
        "model_type": "gemma3_text", "head_dim": 16, "hidden_size": 64, "num_attention_heads": 4,
        "max_position_embeddings": 1024, "rope_theta": 1e6, "rope_local_base_freq": 1e4,
    }  # fmt: skip
    (tmp_path / "config.json").write_text(json.dumps(config))
    _, out, _ = run("frequencies", tmp_path, "--scaling", "linear:factor=2", "--json")
    layers = json.loads(out)["layers"]
    assert layers["full_attention"]["inv_freq"][0] == 0.5
    assert layers["sliding_attention"]["inv_freq"][0] == 1.0  # a window never leaves its training


def test_frequencies_of_a_dynamic_scaling_and_for_people(run, tiny_folder):
    _, out, _ = run("frequencies", tiny_folder, "--scaling", "dynamic-yarn", "--length", "256", "--json")
    assert np.array_equal(json.loads(out)["inv_freq"], rw.YaRN(factor=4).frequencies(rw.Rope(16, 1e4, 64)).inv_freq)
    status, out, _ = run("frequencies", tiny_folder)
    assert status == 0
    assert "wavelength" in out


def test_plan_and_methods(run, tiny_folder):
    status, out, _ = run("plan", tiny_folder, "--target", "1k", "--json")
    document = json.loads(out)
    assert status == 0
    assert document["scaling"]["name"] == "yarn"
    assert document["scaling"]["factor"] >= 1024 / 64
    assert document["rope_parameters"]["factor"] == document["scaling"]["factor"]
    _, out, _ = run("plan", tiny_folder, "--target", "64")
    assert "nothing to do" in out
    _, out, _ = run("methods", "--json")
    assert {method["name"] for method in json.loads(out)} == set(rw.scaling.REGISTRY)
    _, out, _ = run("methods")
    assert all(name in out for name in rw.scaling.REGISTRY)


def test_curve_writes_its_files_and_prints_one_document(curve, tmp_path):
    status, out, err = curve("--json")
    document = json.loads(out)
    assert status == 0, err
    assert set(document) >= CURVE
    assert [(row["scaling"], row["length"]) for row in document["rows"]] == [
        ("none", 32), ("none", 100), ("yarn:factor=2", 32), ("yarn:factor=2", 100),
    ]  # fmt: skip
    assert all(set(row) == ROW for row in document["rows"])
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"curve.json", "curve.csv", "curve.png"}


def test_a_cached_curve_shows_both_ways_of_reading_and_keeps_them_apart(curve):
    scalings = ("none", "dynamic-yarn")
    plain = json.loads(curve("--json", scalings=scalings)[1])["rows"]
    status, out, err = curve("--json", "--cached", "--chunk", "16", "--policy", "continuous", scalings=scalings)
    assert status == 0, err
    rows = json.loads(out)["rows"]
    assert [(row["scaling"], row.get("chunk"), row.get("policy"), row["length"]) for row in rows] == [
        ("none", None, None, 32), ("none", None, None, 100), ("none", 16, None, 32), ("none", 16, None, 100),
        ("dynamic-yarn", None, None, 32), ("dynamic-yarn", None, None, 100),
        ("dynamic-yarn", 16, "continuous", 32), ("dynamic-yarn", 16, "continuous", 100),
    ]  # fmt: skip
    assert [row for row in rows if "chunk" not in row] == plain  # reused
    _, out, _ = curve("--cached", "--chunk", "16", "--policy", "continuous", scalings=scalings)
    assert "dynamic-yarn (cached by 16, continuous)" in out


def test_curve_again_reuses_every_row_and_reads_only_what_is_new(curve, monkeypatch):
    _, out, _ = curve("--json")
    first = json.loads(out)["rows"]

    def no_load(*_, **__):
        raise AssertionError("nothing is missing, so no model is needed")

    with monkeypatch.context() as patch:
        patch.setattr("ropewalk.models.load.load", no_load)
        status, out, _ = curve("--json")
    assert status == 0
    assert json.loads(out)["rows"] == first  # the seconds too: nothing was measured anew
    _, out, _ = curve("--json", scalings=("none", "linear:factor=2"))
    rows = json.loads(out)["rows"]
    assert rows[:2] == first[:2]
    assert {row["scaling"] for row in rows} == {"none", "linear:factor=2"}


def test_an_interrupted_curve_loses_no_row_and_goes_on(curve, monkeypatch):
    add, added = CurveStore.add, []

    def add_three(store, row):
        add(store, row)
        added.append(row)
        if len(added) == 3:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(CurveStore, "add", add_three)
        status, out, err = curve("--json")
    assert (status, out) == (130, "")
    assert "3 rows are safe" in err
    _, out, _ = curve("--json")
    rows = json.loads(out)["rows"]
    assert len(rows) == 4
    assert all({name: value for name, value in row.items() if value is not None} in rows for row in added)


def test_curve_for_people_has_a_table_a_sentence_and_the_paths(curve, tmp_path):
    status, out, _ = curve()
    assert status == 0
    for part in ("yarn:factor=2", "*", "trained on", str(tmp_path / "out" / "curve.json")):
        assert part in out


def test_the_demo_is_the_main_job():
    assert [rw.parse(spec).name for spec in SCALINGS] == [
        "none", "linear", "ntk", "dynamic-ntk", "ntk-by-parts", "yarn", "dynamic-yarn",
    ]  # fmt: skip
    assert LENGTHS == (2048, 4096, 8192, 12288, 16384)


def test_the_core_and_the_light_commands_bring_no_torch(tiny_folder):
    code = (
        "import sys; from ropewalk.cli import _run; import ropewalk;"
        f"status = _run(['frequencies', {str(tiny_folder)!r}, '--scaling', 'yarn:factor=4', '--json']);"
        f"status += _run(['plan', {str(tiny_folder)!r}, '--target', '1k', '--json']) + _run(['methods', '--json']);"
        "heavy = {'torch', 'transformers', 'matplotlib', 'gguf'} & set(sys.modules);"
        "sys.exit(f'imported: {heavy}' if heavy else status)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_tasks_and_metrics_are_listed(run):
    status, out, _ = run("tasks", "--json")
    assert status == 0
    listed = json.loads(out)
    tasks = {task["name"]: task for task in listed["tasks"]}
    assert {"passkey", "needle", "perplexity", "ruler", "longbench", "generate", "lm-eval"} <= set(tasks)
    assert tasks["needle"]["positional"] == "text"
    assert tasks["generate"]["options"] == {"file": None, "metric": "f1", "max_new_tokens": 64}
    assert {"bleu", "rouge-l", "f1"} <= {metric["name"] for metric in listed["metrics"]}
    assert run("tasks")[1].count("\n") > len(tasks)
