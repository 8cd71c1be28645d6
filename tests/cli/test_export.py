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


def test_an_unsupported_scaling_is_an_input_error_with_the_nearest_one(run, tiny_folder):
    options = ("--scaling", "dynamic-yarn", "--engine", "sglang", "--length", "256")
    status, out, err = run("export", tiny_folder, *options)
    assert (status, out) == (2, "")
    assert "the nearest is yarn:factor=4" in err


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
