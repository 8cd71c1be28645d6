from __future__ import annotations

import json
import shlex


def test_export_writes_a_folder_and_prints_the_command_to_serve_it(run, tiny_folder, tmp_path):
    folder = tmp_path / "served"
    status, out, err = run("export", tiny_folder, "--scaling", "yarn:factor=4", "--engine", "vllm", "--out", folder)
    assert status == 0, err
    assert out.strip().splitlines()[-1] == f"vllm serve {folder} --max-model-len 256"
    assert json.loads((folder / "config.json").read_text())["rope_parameters"]["factor"] == 4


def test_json_is_the_only_output(run, tiny_folder):
    scaling = ("--scaling", "ntk-by-parts:factor=4")
    status, out, _ = run("export", tiny_folder, *scaling, "--engine", "vllm", "--length", "100", "--json")
    document = json.loads(out)
    assert (status, document["through"], document["length"], document["path"]) == (0, "yarn", 100, None)
    assert document["changes"]["rope_parameters"]["attention_factor"] == 1.0
    assert shlex.split(document["command"])[:2] == ["vllm", "serve"]


DYNAMIC = ("--scaling", "dynamic-yarn", "--engine", "sglang", "--length", "256")


def test_an_unsupported_dynamic_scaling_is_refused_with_what_to_serve_instead(run, tiny_folder, tmp_path):
    status, out, err = run("export", tiny_folder, *DYNAMIC, "--out", tmp_path / "out")
    assert status == 2
    assert "the nearest is yarn:factor=4" in err
    assert err.count("\n") == 1
    assert "1. yarn:factor=4 for all requests covers 256 tokens" in out
    assert "yarn:factor=4 11.95 (+16.0%)" in out
    assert f"ropewalk curve {tiny_folder} --scaling none --scaling yarn:factor=4 --lengths 16,32,64" in out
    assert "requests of up to 64 tokens, prompt and max_tokens" in out
    assert f"   python -m sglang.launch_server --model-path {tiny_folder} --context-length 64\n" in out
    assert not (tmp_path / "out").exists()


def test_what_to_serve_instead_is_one_json_document(run, tiny_folder):
    status, out, err = run("export", tiny_folder, *DYNAMIC, "--json")
    document = json.loads(out)
    assert status == 2
    assert err == f"ropewalk: error: {document['error']}\n"
    assert document["alternative"]["scaling"] == "yarn:factor=4"
    assert document["alternative"]["route_at"] == 64
    assert [server["length"] for server in document["alternative"]["servers"]] == [64, 256]


def test_an_export_with_stale_cached_keys_says_what_to_serve_instead(run, tiny_folder, tmp_path):
    options = ("--scaling", "dynamic-ntk", "--engine", "transformers", "--length", "256", "--out", tmp_path / "out")
    status, out, err = run("export", tiny_folder, *options)
    assert status == 0, err
    assert "cached keys keep their old rotation" in out
    assert "two servers behind a router" in out
    status, out, _ = run("export", tiny_folder, *options, "--json")
    assert json.loads(out)["alternative"]["scaling"].startswith("ntk")


def test_a_static_export_and_request_factors_need_no_alternative(run, tiny_folder):
    for scaling in ("yarn:factor=4", "dynamic-yarn"):
        options = ("--scaling", scaling, "--engine", "vllm", "--length", "256")
        assert json.loads(run("export", tiny_folder, *options, "--json")[1])["alternative"] is None
        assert "instead" not in run("export", tiny_folder, *options)[1]


def test_a_scaling_that_nothing_comes_near_is_refused_without_an_alternative(run, tiny_folder):
    status, out, err = run("export", tiny_folder, "--scaling", "log-ntk", "--engine", "sglang", "--length", "256")
    assert (status, out) == (2, "")
    assert err.startswith("ropewalk: error: scaling: got 'log-ntk'")


def test_a_position_method_is_refused(run, tiny_folder):
    status, out, err = run("export", tiny_folder, "--scaling", "self-extend", "--engine", "vllm", "--length", "256")
    assert (status, out) == (2, "")
    assert "self-extend changes positions" in err


def test_a_file_at_the_place_of_the_folder_is_kept(run, tiny_folder, tmp_path):
    (tmp_path / "out").write_text("mine")
    options = ("--scaling", "yarn:factor=4", "--engine", "vllm", "--out", tmp_path / "out")
    status, out, err = run("export", tiny_folder, *options)
    assert (status, out) == (2, "")
    assert "out: got" in err
    assert (tmp_path / "out").read_text() == "mine"


def test_an_empty_folder_name_is_refused(run, tiny_folder):
    status, out, err = run("export", tiny_folder, "--scaling", "yarn:factor=2", "--engine", "vllm", "--out", "")
    assert (status, out) == (2, "")
    assert err == "ropewalk: error: out: got ''; expected the path of a folder\n"
