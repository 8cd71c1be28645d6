from __future__ import annotations

import json
import sys

import pytest

import ropewalk as rw


@pytest.fixture(scope="module")
def long_text(tmp_path_factory):
    path = tmp_path_factory.mktemp("text") / "long.txt"
    path.write_text(" ".join(f"w{(i * i) % 97}" for i in range(700)))
    return path


@pytest.fixture
def tune(run, tiny_folder, long_text, tmp_path):
    def run_tune(method, *options):
        fixed = ("--target", "192", "--text", long_text, "--out", tmp_path / "out", "--samples", "1")
        return run("tune", tiny_folder, *fixed, "--dtype", "float32", "--method", method, *options)

    return run_tune


@pytest.mark.parametrize(("method", "name"), [("search", "yarn"), ("evolution", "learned")])
def test_a_search_writes_its_scaling_and_how_it_compares(tune, tmp_path, method, name):
    status, out, err = tune(f"{method}:trials=4,texts=1,facts=2", "--json")
    assert status == 0, err
    document = json.loads(out)
    assert document["scaling"]["name"] == name
    assert rw.parse(str(tmp_path / "out" / "scaling.json")).name == name
    assert document["proof"]["ends"] == [64, 128, 192]
    assert set(document["proof"]) >= {"sentence", "perplexities", "retrieval", "best_formula"}
    (perplexities,) = document["proof"]["perplexities"].values()
    formulas = ["yarn", "ntk", "ntk-by-parts", "mrrope-pro"]
    with_smaller_attention = "yarn:factor=3,attention_factor=1.0769"  # 0.07 ln 3 + 1
    expected = {*(f"{formula}:factor=3" for formula in formulas), with_smaller_attention, "none", "native-window"}
    assert set(perplexities) >= expected
    folder = tmp_path / "out" / "proof"
    assert json.loads((folder / "proof.json").read_text()) == document["proof"]
    assert (folder / "perplexity-1.png").exists()
    status, out, err = tune(f"{method}:trials=4,texts=1,facts=2")  # reads what is stored
    assert status == 0, err
    assert document["proof"]["sentence"] in out
    assert "Answers found" in out


def test_without_optuna_the_package_to_install_is_named(tune, monkeypatch):
    monkeypatch.setitem(sys.modules, "optuna", None)
    status, _, err = tune("search:facts=2")
    assert status == 2
    assert err.splitlines()[-1].endswith("a search needs the package optuna: pip install 'ropewalk[tune]'")
