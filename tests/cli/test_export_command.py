"""`ropewalk export` and `ropewalk engines`, as a user types them."""

from __future__ import annotations

import json
import shlex

from ropewalk.scaling import REGISTRY
from ropewalk.serving.engines import ENGINES


def test_a_folder_for_the_engine_and_the_command_that_starts_it(run, tiny_folder, tmp_path):
    out = tmp_path / "served"
    status, said, err = run("export", tiny_folder, "--scaling", "yarn:factor=4", "--engine", "vllm", "--out", out)
    assert status == 0, err
    assert said.strip().splitlines()[-1] == f"vllm serve {out} --max-model-len 256"
    assert json.loads((out / "config.json").read_text())["rope_parameters"]["factor"] == 4


def test_json_is_the_only_thing_on_standard_output(run, tiny_folder):
    call = (
        "export",
        tiny_folder,
        "--scaling",
        "ntk-by-parts:factor=4",
        "--engine",
        "vllm",
        "--length",
        "100",
        "--json",
    )
    status, said, _ = run(*call)
    document = json.loads(said)
    assert (status, document["through"], document["length"], document["path"]) == (0, "yarn", 100, None)
    assert document["changes"]["rope_parameters"]["attention_factor"] == 1.0
    assert shlex.split(document["command"])[:2] == ["vllm", "serve"]


def test_a_scaling_that_the_engine_cannot_express_is_a_wrong_call(run, tiny_folder):
    call = ("export", tiny_folder, "--scaling", "dynamic-yarn", "--engine", "vllm", "--length", "256")
    status, said, err = run(*call)
    assert (status, said) == (2, "")
    assert err.strip().endswith("the nearest is yarn:factor=4")


def test_engines_are_listed_with_what_they_can_be_given(run):
    status, said, _ = run("engines", "--json")
    cells = json.loads(said)["engines"]
    assert status == 0
    assert {(cell["engine"], cell["method"]) for cell in cells} == {(e, m) for e in ENGINES for m in REGISTRY}
    by_place = {(cell["engine"], cell["method"]): cell for cell in cells}
    assert by_place["vllm", "dynamic-yarn"] == {
        "engine": "vllm",
        "method": "dynamic-yarn",
        "how": "no",
        "detail": "yarn:factor=4",
        "proven": [],
        "refuted": [],
    }
    assert run("engines")[0] == 0


def test_results_that_are_none_are_refused_in_one_line(run, tmp_path):
    (tmp_path / "other.json").write_text('{"rows": []}')
    for folder, message in ((tmp_path, "other.json"), (tmp_path / "missing", "missing")):
        status, said, err = run("engines", "--verified", folder)
        assert (status, said) == (2, "")
        assert message in err
        assert len(err.strip().splitlines()) == 1


def test_a_file_in_the_place_of_the_folder_is_a_wrong_call(run, tiny_folder, tmp_path):
    (tmp_path / "out").write_text("mine")
    call = ("export", tiny_folder, "--scaling", "yarn:factor=4", "--engine", "vllm", "--out", tmp_path / "out")
    status, said, err = run(*call)
    assert (status, said) == (2, "")
    assert "out: got" in err
    assert (tmp_path / "out").read_text() == "mine"
