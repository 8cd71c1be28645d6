from __future__ import annotations

import json

import pytest

import ropewalk as rw
from ropewalk.cli.demo import LENGTHS, SCALINGS
from ropewalk.evaluate.curve import CurveRun
from ropewalk.evaluate.curve_store import CurveStore
from ropewalk.evaluate.key_tokens import KeyTokenRule

ROW_KEYS = {"scaling", "length", "ppl", "ppl_last", "nll", "tokens", "seconds"}


@pytest.fixture
def curve(run, tiny_folder, text_file, tmp_path):
    def run_curve(*options, scalings=("none", "yarn:factor=2"), lengths="32,100"):
        specs = [part for spec in scalings for part in ("--scaling", spec)]
        fixed = ("--lengths", lengths, "--text", text_file, "--out", tmp_path / "out", "--dtype", "float32")
        return run("curve", tiny_folder, *specs, *fixed, *options)

    return run_curve


@pytest.fixture
def no_picture(monkeypatch):
    """Skip the picture, which is drawn again after every row and takes most of the time."""
    monkeypatch.setattr("ropewalk.report.curve.draw_curve", lambda *_, **__: None)


def test_json_is_one_document_and_the_files_are_written(curve, tmp_path):
    status, out, err = curve("--json")
    document = json.loads(out)
    assert status == 0, err
    assert set(document) >= {"model", "text", "dtype", "rows"}
    assert [(row["scaling"], row["length"]) for row in document["rows"]] == [
        ("none", 32), ("none", 100), ("yarn:factor=2", 32), ("yarn:factor=2", 100),
    ]  # fmt: skip
    assert all(set(row) == ROW_KEYS for row in document["rows"])
    files = {path.name for path in (tmp_path / "out").iterdir() if path.name != ".curve.json.lock"}
    assert files == {"curve.json", "curve.csv", "curve.png"}


def test_the_terminal_shows_a_table_a_sentence_and_the_paths(curve, no_picture, tmp_path):
    status, out, _ = curve()
    assert status == 0
    for part in ("yarn:factor=2", "*", "trained on", str(tmp_path / "out" / "curve.json")):
        assert part in out


def test_cached_adds_rows_that_went_through_the_cache(curve, no_picture):
    scalings = ("none", "dynamic-yarn")
    without_cache = json.loads(curve("--json", scalings=scalings)[1])["rows"]
    status, out, err = curve("--json", "--cached", "--chunk", "16", "--policy", "continuous", scalings=scalings)
    assert status == 0, err
    rows = json.loads(out)["rows"]
    assert [(row["scaling"], row.get("chunk"), row.get("policy"), row["length"]) for row in rows] == [
        ("none", None, None, 32), ("none", None, None, 100), ("none", 16, None, 32), ("none", 16, None, 100),
        ("dynamic-yarn", None, None, 32), ("dynamic-yarn", None, None, 100),
        ("dynamic-yarn", 16, "continuous", 32), ("dynamic-yarn", 16, "continuous", 100),
    ]  # fmt: skip
    assert [row for row in rows if "chunk" not in row] == without_cache  # read from the folder, not measured again
    _, out, _ = curve("--cached", "--chunk", "16", "--policy", "continuous", scalings=scalings)
    assert "dynamic-yarn (cached by 16, continuous)" in out


def test_a_second_run_reuses_every_row_and_measures_only_new_ones(curve, no_picture, monkeypatch):
    first = json.loads(curve("--json")[1])["rows"]

    def fail_to_load(*_, **__):
        raise AssertionError("nothing is missing, so no model is needed")

    with monkeypatch.context() as patch:
        patch.setattr("ropewalk.models.load.load", fail_to_load)
        status, out, _ = curve("--json")
    assert status == 0
    assert json.loads(out)["rows"] == first  # with the same seconds: nothing was measured again
    _, out, _ = curve("--json", scalings=("none", "linear:factor=2"))
    rows = json.loads(out)["rows"]
    assert rows[:2] == first[:2]
    assert {row["scaling"] for row in rows} == {"none", "linear:factor=2"}


def test_an_interrupted_run_keeps_its_rows_and_can_be_continued(curve, no_picture, monkeypatch):
    add, added = CurveStore.add, []

    def interrupt_after_three(store, row):
        add(store, row)
        added.append(row)
        if len(added) == 3:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(CurveStore, "add", interrupt_after_three)
        status, out, err = curve("--json")
    assert (status, out) == (130, "")
    assert "3 rows are safe" in err
    rows = json.loads(curve("--json")[1])["rows"]
    assert len(rows) == 4
    assert all({key: value for key, value in row.items() if value is not None} in rows for row in added)


@pytest.fixture
def short_rule(monkeypatch):
    """Find key tokens in the short text of these tests."""
    rule = KeyTokenRule(short_context=40, step=16, min_gain=0.001, max_loss=4.6)
    monkeypatch.setitem(CurveRun.__init__.__kwdefaults__, "rule", rule)


def test_longppl_has_columns_a_table_and_a_picture(curve, no_picture, short_rule, tmp_path):
    status, out, err = curve("--longppl", "--json")
    assert status == 0, err
    rows = json.loads(out)["rows"]
    assert all(set(row) >= ROW_KEYS | {"key_tokens", "evaluator"} for row in rows)
    assert [row["key_tokens"] > 3 for row in rows] == [False, True, False, True]  # at 32 and at 100 tokens
    assert all(row["longppl"] > 1 for row in rows if row["length"] == 100)
    assert {row["evaluator"] for row in rows} == {"itself under yarn:factor=2"}
    assert (tmp_path / "out" / "longppl.png").read_bytes().startswith(b"\x89PNG")
    _, out, _ = curve("--longppl")
    assert "LongPPL: perplexity over the key tokens" in out
    assert "found by the model itself under yarn:factor=2; that favors scalings like this one" in out
    assert f"{rows[1]['key_tokens']} of 100 tokens are key tokens" in out


def test_no_key_tokens_are_said_to_be_none(curve, no_picture, monkeypatch):
    rule = KeyTokenRule(short_context=40, step=16)  # the random model gains nothing near 2 nats
    monkeypatch.setitem(CurveRun.__init__.__kwdefaults__, "rule", rule)
    status, out, _ = curve("--longppl")
    assert status == 0
    assert "No key tokens were found by the model itself under yarn:factor=2, so there is no LongPPL." in out


def test_an_evaluator_without_longppl_is_refused(curve):
    status, out, err = curve("--evaluator", "none")
    assert (status, out) == (2, "")
    assert err == "ropewalk: error: evaluator: got 'none'; expected --longppl beside it\n"


def test_the_cost_on_short_text_is_shown(curve, no_picture):
    (tax,) = json.loads(curve("--json")[1])["short_tax"]
    assert (tax["scaling"], tax["tokens"], tax["windows"]) == ("yarn:factor=2", 64, 9)
    assert tax["percent"] == pytest.approx(100 * (tax["ppl"] / tax["ppl_unscaled"] - 1), abs=0.1)
    _, out, _ = curve()
    assert "Cost on short text: the first 64 tokens" in out
    assert f"{tax['percent']:+.2f}" in out


def test_the_demo_compares_seven_scalings_past_the_trained_length():
    assert [rw.parse(spec).name for spec in SCALINGS] == [
        "none", "linear", "ntk", "dynamic-ntk", "ntk-by-parts", "yarn", "dynamic-yarn",
    ]  # fmt: skip
    assert LENGTHS == (2048, 4096, 8192, 12288, 16384)
