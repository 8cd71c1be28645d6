"""Export: what is written for an engine, and what is refused."""

from __future__ import annotations

import json
import os

import pytest

import ropewalk as rw
from ropewalk.export import export_model


@pytest.fixture
def folder(tmp_path):
    source = tmp_path / "model"
    source.mkdir()
    config = {
        "model_type": "llama", "hidden_size": 256, "num_attention_heads": 4, "num_hidden_layers": 2,
        "max_position_embeddings": 8192, "rope_theta": 100_000.0, "rope_scaling": None, "vocab_size": 97,
    }  # fmt: skip
    (source / "config.json").write_text(json.dumps(config))
    (source / "model.safetensors").write_bytes(b"weights")
    (source / "tokenizer_config.json").write_text('{"model_max_length": 8192, "name": "Käse"}')
    return source


def test_a_folder_of_links_and_a_patched_config(folder, tmp_path):
    before = {file.name: file.read_bytes() for file in folder.iterdir()}
    made = export_model(str(folder), "yarn:factor=4", "transformers", tmp_path / "out")
    out = tmp_path / "out"
    assert (made.path, made.length, made.through) == (str(out), 32_768, "")
    assert (out / "model.safetensors").is_symlink()
    assert (out / "model.safetensors").read_bytes() == b"weights"
    config = json.loads((out / "config.json").read_text())
    assert config["max_position_embeddings"] == 32_768
    assert "rope_scaling" not in config
    assert config["vocab_size"] == 97
    assert rw.plan(str(out), 32_768).scaling == rw.parse("yarn:factor=4")
    assert json.loads((out / "tokenizer_config.json").read_text()) == {"model_max_length": 32_768, "name": "Käse"}
    assert json.loads((out / "ropewalk.json").read_text())["scaling"] == "yarn:factor=4"
    assert {file.name: file.read_bytes() for file in folder.iterdir()} == before, "the source is as it was"


def test_an_earlier_export_is_replaced_and_anything_else_is_not(folder, tmp_path):
    out = tmp_path / "out"
    export_model(str(folder), "yarn:factor=4", "transformers", out)
    export_model(str(folder), "linear:factor=2", "transformers", out)
    assert json.loads((out / "config.json").read_text())["rope_parameters"]["rope_type"] == "linear"
    with pytest.raises(rw.InputError, match=r"out: found .*an empty folder"):
        export_model(str(folder), "yarn:factor=4", "transformers", folder)
    (out / "ropewalk.json").unlink()
    with pytest.raises(rw.InputError, match=r"out: found .*an empty folder"):
        export_model(str(folder), "yarn:factor=4", "transformers", out)


def test_an_export_is_exported_again_from_what_it_now_is(folder, tmp_path):
    export_model(str(folder), "yarn:factor=4", "transformers", tmp_path / "yarn")
    made = export_model(str(tmp_path / "yarn"), "linear:factor=2", "transformers", tmp_path / "linear")
    written = json.loads((tmp_path / "linear" / "config.json").read_text())
    assert written["rope_parameters"] == {"rope_theta": 100_000.0, "rope_type": "linear", "factor": 2.0}
    assert written["max_position_embeddings"] == 8192, "what linear is relative to"
    assert made.length == 32_768
    assert any("more than the 16,384" in note for note in made.notes)


def test_nothing_is_written_without_a_folder(folder, tmp_path):
    before = sorted(tmp_path.rglob("*"))
    made = export_model(str(folder), "yarn:factor=4", "vllm")
    assert made.path is None
    assert "--hf-overrides" in made.command
    assert sorted(tmp_path.rglob("*")) == before


def test_what_takes_no_override_asks_for_a_folder(folder):
    with pytest.raises(rw.InputError, match="out: found None; allowed: a folder"):
        export_model(str(folder), "yarn:factor=4", "transformers")


def test_a_dynamic_scaling_is_refused_with_the_nearest_static_one(folder, tmp_path):
    with pytest.raises(rw.InputError, match=r"vLLM .* the nearest is yarn:factor=4$"):
        export_model(str(folder), "dynamic-yarn", "vllm", tmp_path / "out", 32_768)
    assert not (tmp_path / "out").exists()
    with pytest.raises(rw.InputError, match="length: found None"):
        export_model(str(folder), "dynamic-yarn", "vllm", tmp_path / "out")


def test_what_the_nearest_names_can_be_exported(folder):
    with pytest.raises(rw.InputError) as caught:
        export_model(str(folder), "dynamic-ntk:factor=2", "vllm", length=12_000)
    near = str(caught.value).partition("the nearest is ")[2]
    assert near.startswith("ntk:factor=1.9")
    assert export_model(str(folder), near, "vllm", length=12_000).through == "rope_theta"


def test_lists_of_two_lengths_are_fixed_where_the_engine_fixes_them(folder):
    short, long = [1.0] * 32, [1 + i / 10 for i in range(32)]
    spec = json.dumps({"rope_type": "longrope", "short_factor": short, "long_factor": long, "factor": 4.0})
    made = export_model(str(folder), spec, "vllm", length=32_768)
    assert made.through == ""
    assert any("short texts, too" in note for note in made.notes)


@pytest.mark.parametrize(
    ("model", "scaling", "engine", "message"),
    [
        ("{}", "yarn:factor=4", "vllmm", "engine: found 'vllmm'.*nearest: vllm"),
        ("{}", "yarn", "vllm", "yarn: factor"),
        ("{}/missing", "yarn:factor=4", "vllm", "model"),
        ("{}/model.safetensors", "yarn:factor=4", "vllm", "model"),
    ],
)
def test_bad_input_is_one_line(folder, model, scaling, engine, message):
    with pytest.raises(rw.InputError, match=message) as caught:
        export_model(model.format(folder), scaling, engine)
    assert "\n" not in str(caught.value)


def test_a_folder_that_cannot_be_written(folder, tmp_path):
    blocked = tmp_path / "file"
    blocked.write_text("")
    with pytest.raises((rw.InputError, OSError), match="file"):
        export_model(str(folder), "yarn:factor=4", "transformers", blocked / "out")
    assert os.listdir(tmp_path) == ["model", "file"] or set(os.listdir(tmp_path)) == {"model", "file"}
