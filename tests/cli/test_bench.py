from __future__ import annotations

import json

import pytest

from ropewalk.bench import rotate as measuring

TINY = ("--shapes", "smollm2", "--tokens", "8", "--batches", "2", "--dtype", "float32", "--rounds", "1")


@pytest.fixture
def bench(run, tmp_path, monkeypatch):
    kept = {name: peer for name, peer in measuring.PEERS.items() if name != "torch.compile"}  # which takes its time
    monkeypatch.setattr(measuring.measure, "__defaults__", (kept,))

    def _call(*arguments):
        return run("bench", *arguments, "--out", tmp_path / "out")

    return _call


@pytest.fixture
def kept(tmp_path):
    def _call():
        (path,) = (tmp_path / "out").glob("*.json")
        return json.loads(path.read_text())

    return _call


def test_rotate_prints_one_document_and_keeps_it(bench, kept):
    status, out, err = bench("rotate", *TINY, "--json")
    assert status == 0, err
    document = json.loads(out)
    assert document == kept()
    rows = document["rotate"]["rows"]
    assert [(row["shape"], row["batch"], row["tokens"]) for row in rows] == [("smollm2", 1, 8), ("smollm2", 2, 1)]
    for row in rows:
        contestants = row["contestants"]
        assert {"copy", "copy into", "ropewalk", "ropewalk in place", "transformers", "vLLM"} <= set(contestants)
        assert all(("seconds" in found) != ("reason" in found) for found in contestants.values())
        assert contestants["ropewalk"]["best_peer"] == "transformers"
    assert document["rotate"]["versions"]["torch"]
    assert document["rotate"]["command"].startswith("ropewalk")
    assert "smollm2, decode, batch 2, float32" in err


def test_rotate_for_people(bench):
    status, out, err = bench("rotate", *TINY)
    assert status == 0, err
    for part in ("prefill, 8 tokens", "decode, batch 2", "ropewalk in place", "FlashInfer, not timed:", "Results: "):
        assert part in out


@pytest.mark.parametrize(("what", "option"), [("curve", "--tokens"), ("decode", "--context")])
def test_whole_models(bench, kept, tiny_folder, what, option):
    arguments = (what, tiny_folder, option, "16,24", "--dtype", "float32", "--rounds", "2")
    status, out, err = bench(*arguments, "--json")
    assert status == 0, err
    document = json.loads(out)
    assert document == kept()
    part = document[what]
    assert (part["scaling"], part["dtype"]) == ("yarn:factor=4", "float32")
    assert [row["tokens"] for row in part["rows"]] == [16, 24]
    assert all(set(row["ways"]) == {"plain", "scaled", "fused", "scaled, fused"} for row in part["rows"])
    status, out, _ = bench(*arguments)
    assert status == 0
    assert "scaling on against off" in out


def test_benches_share_a_file(bench, kept, tiny_folder, tmp_path):
    bench("rotate", *TINY)
    (picture,) = (tmp_path / "out").glob("*.png")
    assert picture.stat().st_size > 10_000
    bench("curve", tiny_folder, "--tokens", "8", "--dtype", "float32", "--rounds", "1")
    assert set(kept()) == {"device", "date", "rotate", "curve"}


def test_what_was_measured_before_an_interruption_is_safe(bench, kept, monkeypatch):
    monkeypatch.setattr("ropewalk.bench.rotate.measure", _once())
    status, out, err = bench("rotate", *TINY, "--json")
    assert (status, out) == (130, "")
    assert "1 measurements are safe" in err
    assert kept()["rotate"]["rows"] == [{"measured": True}]


def _once():
    rows = iter([{"measured": True}])

    def measure(*_):
        for row in rows:
            return row
        raise KeyboardInterrupt

    return measure


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        (("rotate", "--shapes", "lama-3-8b"), ("shapes", "'lama-3-8b'", "llama-3-8b")),
        (("rotate", "--tokens", "many"), ("tokens", "'many'", "8k")),
        (("rotate", "--batches", "1k"), ("batches", "'1k'", "1,16,256")),
        (("rotate", "--batches", "0"), ("batches", "0", "rows")),
        (("rotate", "--dtype", "int8"), ("dtype", "'int8'", "bfloat16")),
        (("rotate", "--tokens", "", "--batches", ""), ("tokens", "at least one case")),
        (("rotate", "--device", "nothing"), ("device", "'nothing'", "cpu")),
        (("rotate", "--rounds", "0"), ("rounds", "0")),
        (("curve", "smollm2", "--tokens", ","), ("tokens", "none")),
        (("decode", "smollm2", "--context", "-1"), ("context", "'-1'")),
        (("decode", "smollm2", "--scaling", "yran:factor=2"), ("scaling", "'yran'", "yarn")),
        (("decode", "smollm2", "--rounds", "-1"), ("rounds", "-1")),
        (("decode", "smollm2", "--dtype", "int8"), ("dtype", "'int8'", "bfloat16")),
    ],
)
def test_bad_input_is_one_line(bench, arguments, parts):
    status, out, err = bench(*arguments)
    assert (status, out) == (2, "")
    assert len(err.splitlines()) == 1
    assert all(part in err for part in ("ropewalk: error: ", *parts))
