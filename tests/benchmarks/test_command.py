from __future__ import annotations

import json
import shutil

import pytest
from benchmarks.speed import rotate as measuring

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


def only_run(document):
    """What --json prints of a file with one run."""
    (run,) = document.pop("runs")
    return {**document, **run}


def test_rotate_prints_one_document_and_keeps_it(bench, kept):
    status, out, err = bench("rotate", *TINY, "--json")
    assert status == 0, err
    document = json.loads(out)
    assert document == only_run(kept())
    rows = document["rows"]
    assert [(row["shape"], row["batch"], row["tokens"]) for row in rows] == [("smollm2", 1, 8), ("smollm2", 2, 1)]
    for row in rows:
        contestants = row["contestants"]
        assert {"copy", "copy into", "ropewalk", "ropewalk in place", "transformers", "vLLM"} <= set(contestants)
        assert all(("seconds" in found) != ("reason" in found) for found in contestants.values())
        assert contestants["ropewalk"]["best_peer"] == "transformers"
    assert document["versions"]["torch"]
    assert document["command"].startswith("ropewalk")
    assert "smollm2, decode, batch 2, float32" in err


def test_rotate_for_people(bench):
    status, out, err = bench("rotate", *TINY)
    assert status == 0, err
    for part in ("prefill, 8 tokens", "decode, batch 2", "ropewalk in place", "FlashInfer, not timed:", "Results: "):
        assert part in out


@pytest.mark.parametrize(("what", "option"), [("curve", "--tokens"), ("decode", "--context")])
def test_whole_models(bench, kept, tiny_folder, what, option):
    arguments = (what, tiny_folder, option, "16,24,16", "--dtype", "float32", "--rounds", "2")
    status, out, err = bench(*arguments, "--json")
    assert status == 0, err
    document = json.loads(out)
    assert document == only_run(kept())
    assert (document["bench"], document["scaling"], document["dtype"]) == (what, "yarn:factor=4", "float32")
    assert [row["tokens"] for row in document["rows"]] == [16, 24]
    assert all(set(row["ways"]) == {"plain", "scaled", "fused", "scaled, fused"} for row in document["rows"])
    status, out, _ = bench(*arguments)
    assert status == 0
    assert "scaling on against off" in out


def test_benches_share_a_file(bench, kept, tiny_folder, tmp_path):
    bench("rotate", *TINY)
    (picture,) = (tmp_path / "out").glob("*.png")
    assert picture.stat().st_size > 10_000
    bench("curve", tiny_folder, "--tokens", "8", "--dtype", "float32", "--rounds", "1")
    bench("rotate", *TINY)
    assert [run["bench"] for run in kept()["runs"]] == ["rotate", "curve", "rotate"]


def test_what_was_measured_before_an_interruption_is_safe(bench, kept, monkeypatch):
    monkeypatch.setattr("benchmarks.speed.rotate.measure", _once())
    status, out, err = bench("rotate", *TINY, "--json")
    assert (status, out) == (130, "")
    assert "1 measurements are safe" in err
    assert only_run(kept())["rows"] == [{"measured": True}]


def test_what_others_print_is_not_in_the_document(bench, monkeypatch):
    prepare = measuring.PEERS["transformers"].prepare
    monkeypatch.setattr(measuring.PEERS["transformers"], "prepare", lambda inputs: (print("noise"), prepare(inputs))[1])
    status, out, err = bench("rotate", *TINY, "--json")
    assert status == 0
    assert json.loads(out)
    assert "noise" in err


def test_the_same_case_is_measured_once(bench):
    twice = ("--shapes", "smollm2,smollm2", "--tokens", "8,8", "--batches", "2,2", "--dtype", "float32,float32")
    status, out, err = bench("rotate", *TINY, *twice, "--json")
    assert status == 0, err
    assert len(json.loads(out)["rows"]) == 2


def test_a_case_that_does_not_fit_leaves_the_others(bench, kept, tmp_path, monkeypatch):
    inputs = measuring.Inputs

    def short_of_memory(case):
        if case.tokens == 9:
            raise RuntimeError("can't allocate memory")
        return inputs(case)

    monkeypatch.setattr(measuring, "Inputs", short_of_memory)
    status, out, err = bench("rotate", *TINY, "--tokens", "8,9")
    assert status == 0, err
    assert "prefill, 9 tokens, float32, 0.0527 MiB moved, not measured: RuntimeError: can't allocate memory" in out
    assert ["reason" in row for row in only_run(kept())["rows"]] == [False, True, False]
    assert list((tmp_path / "out").glob("*.png"))


def test_nothing_of_ours_to_show_is_a_failure(bench, kept, monkeypatch):
    for name, peer in measuring.PEERS.items():
        if name.startswith("ropewalk"):
            monkeypatch.setattr(peer, "prepare", lambda _: 1 / 0)
    status, out, err = bench("rotate", *TINY, "--json")
    assert (status, out) == (1, "")
    assert "nothing of ours could be timed: ZeroDivisionError: division by zero" in err.splitlines()[-1]
    assert len(only_run(kept())["rows"]) == 2


def test_a_model_that_cannot_decode_with_such_a_cache(bench, tiny_folder, tmp_path):
    from transformers import MiniMaxConfig, MiniMaxForCausalLM

    sizes = {"hidden_size": 32, "intermediate_size": 32, "num_attention_heads": 2, "num_key_value_heads": 1}
    experts = {"num_local_experts": 2, "num_experts_per_tok": 1, "head_dim": 16, "block_size": 8}
    folder = tmp_path / "minimax"
    shutil.copytree(tiny_folder, folder)
    (folder / "model.safetensors").unlink()
    MiniMaxForCausalLM(MiniMaxConfig(vocab_size=97, num_hidden_layers=2, **sizes, **experts)).save_pretrained(folder)
    status, out, err = bench("decode", folder, "--context", "16", "--dtype", "float32", "--rounds", "1")
    assert (status, out) == (1, "")
    assert "ValueError: MiniMax uses cache of its own" in err.splitlines()[-1]
    assert "Traceback" not in err


def test_a_folder_that_cannot_be_written_is_refused_before_a_model_is_loaded(run, tiny_folder, tmp_path):
    taken = tmp_path / "file"
    taken.write_text("")
    status, out, err = run("bench", "decode", tiny_folder, "--context", "16", "--out", taken)
    assert (status, out) == (2, "")
    assert len(err.splitlines()) == 1
    assert "out" in err


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
        (("rotate", "--tokens", "8,1"), ("tokens", "'1'", "2 tokens or more", "--batches")),
        (("rotate", "--batches", "1k"), ("batches", "'1k'", "1,16,256")),
        (("rotate", "--batches", "0"), ("batches", "0", "rows")),
        (("rotate", "--dtype", "int8"), ("dtype", "'int8'", "bfloat16")),
        (("rotate", "--tokens", "", "--batches", ""), ("tokens", "at least one case")),
        (("rotate", "--device", "nothing"), ("device", "'nothing'", "cpu")),
        (("rotate", "--device", "meta"), ("device", "'meta'", "cpu")),
        (("curve", "smollm2", "--device", "hpu"), ("device", "'hpu'", "cpu")),
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
