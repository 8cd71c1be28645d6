"""Position methods on the command line."""

from __future__ import annotations

import json

import pytest


def test_curve_measures_position_methods(run, tiny_folder, text_file, tmp_path, monkeypatch):
    monkeypatch.setattr("ropewalk.report.curve.draw_curve", lambda *_, **__: None)
    scalings = ["none", "self-extend:group=8,window=32", "leaky-rerope"]
    options = [argument for scaling in scalings for argument in ("--scaling", scaling)]
    options += ["--lengths", "64,200", "--text", text_file, "--out", tmp_path / "out", "--dtype", "float32"]
    status, out, err = run("curve", tiny_folder, *options, "--json")
    assert status == 0, err
    rows = json.loads(out)["rows"]
    assert [(row["scaling"], row["length"]) for row in rows] == [(name, n) for name in scalings for n in (64, 200)]
    perplexity = {(row["scaling"], row["length"]): row["ppl"] for row in rows}
    for scaling in scalings[1:]:
        assert perplexity[scaling, 64] == pytest.approx(perplexity["none", 64], rel=1e-6)
        assert perplexity[scaling, 200] != pytest.approx(perplexity["none", 200], rel=1e-6)


def test_eval_scores_position_methods_and_report_describes_them(run, tiny_folder, text_file, tmp_path):
    scalings = ("--scaling", "rerope:window=32", "--scaling", "none")
    options = ("--task", f"perplexity:{text_file}", "--lengths", "90", "--samples", "2", "--out", tmp_path / "out")
    status, out, err = run("eval", tiny_folder, *scalings, *options, "--json")
    assert status == 0, err
    assert {cell["scaling"] for cell in json.loads(out)["cells"]} == {"rerope:window=32", "none"}
    status, _, err = run("report", tmp_path / "out")
    assert status == 0, err
    assert "ReRoPE: texts of up to 64 tokens are unchanged" in (tmp_path / "out" / "report.html").read_text()


def test_frequencies_refuses_a_position_method_in_one_line(run, tiny_folder):
    status, _, err = run("frequencies", tiny_folder, "--scaling", "self-extend")
    assert status == 2
    assert "which this command shows; self-extend changes positions" in err
    assert err.count("\n") == 1


def test_plan_offers_a_position_method(run, tiny_folder):
    status, out, _ = run("plan", tiny_folder, "--target", "128")
    assert status == 0
    assert "leaky-rerope is an alternative: it leaves texts of up to 64 tokens as they are" in " ".join(out.split())
