from __future__ import annotations

import json
import shutil

import pytest
from benchmarks.speed import rotation
from benchmarks.speed.__main__ import app

from ropewalk import cli

TINY = ("--shapes", "smollm2", "--tokens", "8", "--batches", "2", "--dtype", "float32", "--rounds", "1")


@pytest.fixture
def run(capfd):
    """Run a command; return (exit status, standard output, standard error)."""

    def run_captured(*argv):
        capfd.readouterr()
        status = cli.run([str(argument) for argument in argv], app)
        out, err = capfd.readouterr()
        return status, out, err

    return run_captured


@pytest.fixture
def bench(run, tmp_path, monkeypatch):
    """Run a command that writes its results to `tmp_path`, without torch.compile, which takes seconds per case."""
    fast = {name: item for name, item in rotation.IMPLEMENTATIONS.items() if name != "torch.compile"}
    monkeypatch.setattr(rotation.measure_rotation, "__defaults__", (fast,))
    return lambda *arguments: run(*arguments, "--out", tmp_path / "out")


@pytest.fixture
def read_results(tmp_path):
    """Return the content of the one results file."""

    def read():
        (path,) = (tmp_path / "out").glob("*.json")
        return json.loads(path.read_text())

    return read


def merge_only_run(document):
    """Return the document of --json for a file with one run."""
    (run,) = document.pop("runs")
    return {**document, **run}


def test_rotate_prints_the_document_that_it_writes(bench, read_results):
    status, out, err = bench("rotate", *TINY, "--json")
    assert status == 0, err
    document = json.loads(out)
    assert document == merge_only_run(read_results())
    rows = document["rows"]
    assert [(row["shape"], row["batch"], row["tokens"]) for row in rows] == [("smollm2", 1, 8), ("smollm2", 2, 1)]
    for row in rows:
        contestants = row["contestants"]
        assert {"copy", "copy into", "ropewalk", "ropewalk in place", "transformers", "vLLM"} <= set(contestants)
        assert all(("seconds" in found) != ("reason" in found) for found in contestants.values())
        assert contestants["ropewalk"]["best_peer"] == "transformers"
    assert document["versions"]["torch"]
    assert document["command"].startswith("python -m benchmarks.speed")
    assert "smollm2, decode, batch 2, float32" in err


def test_rotate_prints_tables(bench):
    status, out, err = bench("rotate", *TINY)
    assert status == 0, err
    for part in ("prefill, 8 tokens", "decode, batch 2", "ropewalk in place", "FlashInfer, not timed:", "Results: "):
        assert part in out


@pytest.mark.parametrize(("command", "option"), [("curve", "--tokens"), ("decode", "--context")])
def test_whole_models(bench, read_results, tiny_folder, command, option):
    arguments = (command, tiny_folder, "--dtype", "float32", "--rounds", "1")
    status, out, err = bench(*arguments, option, "16,24,16", "--json")
    assert status == 0, err
    document = json.loads(out)
    assert document == merge_only_run(read_results())
    assert (document["bench"], document["scaling"], document["dtype"]) == (command, "yarn:factor=4", "float32")
    assert [row["tokens"] for row in document["rows"]] == [16, 24]
    assert all(set(row["ways"]) == {"plain", "scaled", "fused", "scaled, fused"} for row in document["rows"])
    status, out, _ = bench(*arguments, option, "8")
    assert status == 0
    assert "scaling on against off" in out


def test_all_commands_add_to_one_file(bench, read_results, tiny_folder, tmp_path):
    bench("rotate", *TINY)
    (picture,) = (tmp_path / "out").glob("*.png")
    assert picture.stat().st_size > 10_000
    bench("curve", tiny_folder, "--tokens", "8", "--dtype", "float32", "--rounds", "1")
    bench("rotate", *TINY)
    assert [run["bench"] for run in read_results()["runs"]] == ["rotate", "curve", "rotate"]


def test_measurements_before_an_interruption_are_saved(bench, read_results, monkeypatch):
    rows = iter([{"measured": True}])

    def interrupt_second_case(*_):
        for row in rows:
            return row
        raise KeyboardInterrupt

    monkeypatch.setattr("benchmarks.speed.rotation.measure_rotation", interrupt_second_case)
    status, out, err = bench("rotate", *TINY, "--json")
    assert (status, out) == (130, "")
    assert "1 measurements are saved" in err
    assert merge_only_run(read_results())["rows"] == [{"measured": True}]


def test_messages_of_other_projects_are_not_in_the_document(bench, monkeypatch):
    transformers = rotation.IMPLEMENTATIONS["transformers"]
    prepare = transformers.prepare

    def print_and_prepare(inputs):
        print("a message")
        return prepare(inputs)

    monkeypatch.setattr(transformers, "prepare", print_and_prepare)
    status, out, err = bench("rotate", *TINY, "--json")
    assert status == 0
    assert json.loads(out)
    assert "a message" in err


def test_a_repeated_case_is_measured_once(bench):
    repeated = ("--shapes", "smollm2,smollm2", "--tokens", "8,8", "--batches", "2,2", "--dtype", "float32,float32")
    status, out, err = bench("rotate", *TINY, *repeated, "--json")
    assert status == 0, err
    assert len(json.loads(out)["rows"]) == 2


def test_a_case_that_does_not_fit_into_memory_leaves_the_others(bench, read_results, tmp_path, monkeypatch):
    make_inputs = rotation.Inputs

    def run_out_of_memory(case):
        if case.tokens == 9:
            raise RuntimeError("can't allocate memory")
        return make_inputs(case)

    monkeypatch.setattr(rotation, "Inputs", run_out_of_memory)
    status, out, err = bench("rotate", *TINY, "--tokens", "8,9")
    assert status == 0, err
    assert "prefill, 9 tokens, float32, 0.0527 MiB moved, not measured: RuntimeError: can't allocate memory" in out
    assert ["reason" in row for row in merge_only_run(read_results())["rows"]] == [False, True, False]
    assert list((tmp_path / "out").glob("*.png"))


def test_a_run_without_timings_of_ropewalk_fails(bench, read_results, monkeypatch):
    for name, implementation in rotation.IMPLEMENTATIONS.items():
        if name.startswith("ropewalk"):
            monkeypatch.setattr(implementation, "prepare", lambda _: 1 / 0)
    status, out, err = bench("rotate", *TINY, "--json")
    assert (status, out) == (1, "")
    assert "nothing of ropewalk could be timed: ZeroDivisionError: division by zero" in err.splitlines()[-1]
    assert len(merge_only_run(read_results())["rows"]) == 2


def test_a_model_that_cannot_decode_with_a_dynamic_cache(bench, tiny_folder, tmp_path):
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


def test_an_unwritable_folder_is_refused_before_the_model_is_loaded(run, tiny_folder, tmp_path):
    file = tmp_path / "file"
    file.write_text("")
    status, out, err = run("decode", tiny_folder, "--context", "16", "--out", file)
    assert (status, out) == (2, "")
    assert len(err.splitlines()) == 1
    assert "out" in err


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        (("rotate", "--shapes", "lama-3-8b"), ("shapes", "'lama-3-8b'", "llama-3-8b")),
        (("rotate", "--tokens", "many"), ("tokens", "'many'", "8k")),
        (("rotate", "--tokens", "8,1"), ("tokens", "'1'", "2 tokens", "--batches")),
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
def test_bad_input_is_reported_in_one_line(bench, arguments, parts):
    status, out, err = bench(*arguments)
    assert (status, out) == (2, "")
    assert len(err.splitlines()) == 1
    assert all(part in err for part in ("ropewalk: error: ", *parts))
