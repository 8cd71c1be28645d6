"""`export_model`: the folder or command for an engine, and the cases that are refused."""

from __future__ import annotations

import json
import os
import shlex
from fnmatch import fnmatch
from pathlib import Path

import gguf
import huggingface_hub
import pytest
from tests.helpers.gguf_model import small_gguf, tiny_llama

import ropewalk as rw
from ropewalk import config as configs
from ropewalk.errors import UnsupportedScalingError
from ropewalk.models import load as loading
from ropewalk.serving.engines import ENGINES, checkpoint_folder
from ropewalk.serving.export import export_model

LLAMA = {
    "model_type": "llama", "hidden_size": 256, "num_attention_heads": 4, "num_hidden_layers": 2,
    "max_position_embeddings": 8192, "rope_theta": 100_000.0, "rope_scaling": None, "vocab_size": 97,
}  # fmt: skip


@pytest.fixture
def folder(tmp_path):
    """A checkpoint of a Llama that was trained on 8,192 tokens."""
    source = tmp_path / "model"
    source.mkdir()
    (source / "config.json").write_text(json.dumps(LLAMA))
    (source / "model.safetensors").write_bytes(b"weights")
    (source / "tokenizer_config.json").write_text('{"model_max_length": 8192, "name": "Käse"}')
    return source


def test_an_export_links_the_weights_and_rewrites_the_config(folder, tmp_path):
    before = {file.name: file.read_bytes() for file in folder.iterdir()}
    export = export_model(str(folder), "yarn:factor=4", "transformers", tmp_path / "out")
    out = tmp_path / "out"
    assert (export.path, export.length, export.encoded_as) == (str(out), 32_768, "")
    assert (out / "model.safetensors").is_symlink()
    assert (out / "model.safetensors").read_bytes() == b"weights"
    config = json.loads((out / "config.json").read_text())
    assert config["max_position_embeddings"] == 32_768
    assert "rope_scaling" not in config
    assert config["vocab_size"] == 97
    assert rw.plan(str(out), 32_768).scaling == rw.parse("yarn:factor=4")
    assert json.loads((out / "tokenizer_config.json").read_text()) == {"model_max_length": 32_768, "name": "Käse"}
    assert json.loads((out / "ropewalk.json").read_text())["scaling"] == "yarn:factor=4"
    assert {file.name: file.read_bytes() for file in folder.iterdir()} == before, "the source is unchanged"


@pytest.mark.parametrize("engine", ["transformers", "vllm", "sglang"])
def test_a_learned_scaling_is_exported_as_longrope_lists(folder, tmp_path, engine):
    divisors = [1 + pair / 8 for pair in range(32)]
    scaling = rw.Learned(divisors, attention_factor=1.25, target=32_768).write(tmp_path / "scaling.json")
    export = export_model(str(folder), str(tmp_path / "scaling.json"), engine, tmp_path / "out")
    assert (export.scaling, export.length, export.encoded_as) == (str(scaling), 32_768, "longrope lists")
    layer = ENGINES[engine].interpret(json.loads((tmp_path / "out" / "config.json").read_text()), 32_768).main_layer
    frequencies = configs.compute_layer_frequencies(layer.scaling, layer, 32_768)
    assert frequencies.inv_freq == pytest.approx(scaling.frequencies(layer.rope).inv_freq)
    assert frequencies.attention_factor == pytest.approx(1.25)


@pytest.mark.parametrize("engine", ENGINES)
def test_a_set_for_each_layer_is_refused_by_the_name_of_the_engine(folder, tmp_path, engine):
    model = str(folder)
    if ENGINES[engine].checkpoint_format == "gguf":
        model = str(small_gguf(tmp_path / "small.gguf"))
    scaling = rw.Learned([[1 + pair / 8 for pair in range(32)]] * 2, attention_factor=1.25, target=32_768)
    expected = f"which {ENGINES[engine].title} .* shares among all layers .*without --per-layer learns one set"
    with pytest.raises(rw.InputError, match=expected) as caught:
        export_model(model, scaling, engine, tmp_path / "out")
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "out").exists()


def test_only_an_earlier_export_is_replaced(folder, tmp_path):
    out = tmp_path / "out"
    export_model(str(folder), "yarn:factor=4", "transformers", out)
    export_model(str(folder), "linear:factor=2", "transformers", out)
    assert json.loads((out / "config.json").read_text())["rope_parameters"]["rope_type"] == "linear"
    (out / "ropewalk.json").unlink()
    before = snapshot(out)
    with pytest.raises(rw.InputError, match=r"out: got .*an empty folder"):
        export_model(str(folder), "yarn:factor=4", "transformers", out)
    assert snapshot(out) == before


def snapshot(folder):
    """Return the content of every file below a folder; for links their target."""
    return {
        str(path.relative_to(folder)): os.readlink(path) if path.is_symlink() else path.is_dir() or path.read_bytes()
        for path in folder.rglob("*")
    }


def test_no_file_of_the_previously_exported_model_remains(folder, tmp_path):
    other = tmp_path / "other"
    other.mkdir()
    (other / "config.json").write_bytes((folder / "config.json").read_bytes())
    (other / "model-00001-of-00002.safetensors").write_bytes(b"other weights")
    out = tmp_path / "out"
    export_model(str(other), "yarn:factor=4", "transformers", out)
    recorded = json.loads((out / "ropewalk.json").read_text())["written"]
    assert set(recorded) == {"config.json", "model-00001-of-00002.safetensors"}
    export_model(str(folder), "yarn:factor=4", "transformers", out)
    assert set(snapshot(out)) == {"config.json", "model.safetensors", "ropewalk.json", "tokenizer_config.json"}
    assert (other / "model-00001-of-00002.safetensors").read_bytes() == b"other weights"


def test_a_file_that_the_user_added_to_an_export_is_kept(folder, tmp_path):
    out = tmp_path / "out"
    export_model(str(folder), "yarn:factor=4", "transformers", out)
    (out / "notes.txt").write_text("mine")
    export_model(str(folder), "linear:factor=2", "transformers", out)
    assert (out / "notes.txt").read_text() == "mine"


@pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
def test_a_file_that_the_user_changed_in_an_export_is_not_replaced(folder, tmp_path, name):
    out = tmp_path / "out"
    export_model(str(folder), "yarn:factor=4", "transformers", out)
    (out / name).unlink()
    (out / name).write_text("mine")
    before = snapshot(out)
    with pytest.raises(rw.InputError, match=rf"out: got '.*{name}'; expected another folder"):
        export_model(str(folder), "linear:factor=2", "transformers", out)
    assert snapshot(out) == before


@pytest.mark.parametrize("named_by", ["folder", "link", "config.json"])
def test_a_model_is_not_exported_into_its_own_folder(folder, tmp_path, named_by):
    """This holds for an exported folder, too: its weights would become links to themselves."""
    model, out = folder, folder
    if named_by == "link":
        out = tmp_path / "link"
        out.symlink_to(folder)
    if named_by == "config.json":
        model = folder / "config.json"
    (folder / "ropewalk.json").write_text(json.dumps({"written": {"model.safetensors": [7, 0]}}))
    os.utime(folder / "model.safetensors", ns=(0, 0))
    before = snapshot(folder)
    with pytest.raises(rw.InputError, match=r"out: got .*another folder than the model's own"):
        export_model(str(model), "yarn:factor=4", "transformers", out)
    assert snapshot(folder) == before


def test_weights_that_another_export_links_to_are_kept(folder, tmp_path):
    unpacked, linked = tmp_path / "unpacked", tmp_path / "linked"
    export_model(str(folder), "yarn:factor=4", "transformers", unpacked)
    (unpacked / "model.safetensors").unlink()
    (unpacked / "model.safetensors").write_bytes(b"unpacked")
    manifest = json.loads((unpacked / "ropewalk.json").read_text())
    manifest["written"]["model.safetensors"] = [8, (unpacked / "model.safetensors").stat().st_mtime_ns]
    (unpacked / "ropewalk.json").write_text(json.dumps(manifest))
    export_model(str(unpacked), "none", "transformers", linked)
    before = snapshot(unpacked)
    with pytest.raises(rw.InputError, match=r"another folder: the model's own model\.safetensors is in it"):
        export_model(str(linked), "yarn:factor=4", "transformers", unpacked)
    assert snapshot(unpacked) == before


def test_a_gguf_file_is_not_overwritten(tmp_path):
    source = small_gguf(tmp_path / "small.gguf")
    before = snapshot(tmp_path)
    with pytest.raises(rw.InputError, match="another folder than the model's own"):
        export_model(str(source), "yarn:factor=2", "llama.cpp", tmp_path)
    assert snapshot(tmp_path) == before
    for spec in ("yarn:factor=2", "linear:factor=2"):
        export = export_model(str(source), spec, "llama.cpp", tmp_path / "out")
        assert configs.read(export.path).ropes["all"].scaling == rw.parse(spec)
    assert set(snapshot(tmp_path / "out")) == {"small.gguf", "ropewalk.json"}


@pytest.mark.parametrize("error", [OSError(28, "full"), KeyboardInterrupt()])
@pytest.mark.parametrize("earlier", [True, False])
def test_a_failed_export_leaves_no_files(tmp_path, monkeypatch, error, earlier):
    source, out = small_gguf(tmp_path / "small.gguf"), tmp_path / "out"
    if earlier:
        export_model(str(source), "yarn:factor=2", "llama.cpp", out)
    before = snapshot(tmp_path)
    monkeypatch.setattr(gguf.GGUFWriter, "write_tensor_data", lambda *_: (_ for _ in ()).throw(error))
    with pytest.raises(type(error)):
        export_model(str(source), "linear:factor=2", "llama.cpp", out)
    assert snapshot(tmp_path) == before


def test_an_export_is_replaced_completely_or_not_at_all(folder, tmp_path, monkeypatch):
    """Interrupt the replacement after each of its renames in turn."""
    out, rename = tmp_path / "out", os.rename
    export_model(str(folder), "yarn:factor=4", "transformers", out)
    before = snapshot(out)
    for last in range(100):
        done = 0

        def interrupted(*paths, last=last):
            nonlocal done
            rename(*paths)
            done += 1
            if done == last + 1:
                raise KeyboardInterrupt

        with monkeypatch.context() as patch:
            patch.setattr(os, "rename", interrupted)
            try:
                export_model(str(folder), "linear:factor=2", "transformers", out)
                break
            except KeyboardInterrupt:
                assert snapshot(out) == before
    assert last == 2 * len(before)
    assert json.loads((out / "ropewalk.json").read_text())["scaling"] == "linear:factor=2"


def test_a_tilde_is_expanded(folder, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    export = export_model("~/model", "yarn:factor=4", "vllm", "~/out")
    assert export.path == str(tmp_path / "out")
    assert export.command == f"vllm serve {tmp_path}/out --max-model-len 32768"
    assert (tmp_path / "out" / "ropewalk.json").exists()
    assert not (tmp_path / "~").exists()
    with pytest.raises(rw.InputError, match="another folder than the model's own"):
        export_model(str(folder), "yarn:factor=4", "vllm", "~/model")
    (tmp_path / "out" / "config.json").write_text("{}")
    with pytest.raises(rw.InputError, match="that file is yours"):
        export_model("~/model", "yarn:factor=4", "vllm", "~/out")


def test_subfolders_of_the_model_are_linked_and_hidden_ones_are_not(folder, tmp_path):
    (folder / "1_Pooling").mkdir()
    (folder / "1_Pooling" / "config.json").write_text("{}")
    (folder / ".git").mkdir()
    export = export_model(str(folder), "yarn:factor=4", "transformers", folder / "served")
    out = Path(export.path)
    assert (out / "1_Pooling" / "config.json").read_text() == "{}"
    assert (out / "1_Pooling").is_symlink()
    assert not {"served", ".git"} & set(os.listdir(out))
    export_model(str(folder), "linear:factor=2", "transformers", folder / "served")
    assert (folder / "1_Pooling" / "config.json").read_text() == "{}"


@pytest.mark.parametrize(
    ("engine", "name"),
    [("transformers", "TokenizersBackend")]
    + [(engine, "PreTrainedTokenizerFast") for engine in ("transformers4", "tgi", "tensorrt-llm")],
)
def test_the_tokenizer_class_is_renamed_for_the_engine(folder, tmp_path, engine, name):
    """transformers 5 saves a class name that transformers 4 does not have. Other class names are kept."""
    config = {"tokenizer_class": "TokenizersBackend", "eos_token": "</s>"}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    export_model(str(folder), "none", engine, tmp_path / "out")
    written = json.loads((tmp_path / "out" / "tokenizer_config.json").read_text())
    assert written == {**config, "tokenizer_class": name}
    (folder / "tokenizer_config.json").write_text('{"tokenizer_class": "LlamaTokenizerFast"}')
    export_model(str(folder), "none", engine, tmp_path / "out")
    assert (tmp_path / "out" / "tokenizer_config.json").is_symlink()


def test_the_tokenizer_class_of_an_unpacked_gguf_file_is_renamed(tmp_path, monkeypatch):
    class Loaded:
        def save_pretrained(self, folder):
            (folder / "tokenizer_config.json").write_text('{"tokenizer_class": "TokenizersBackend"}')

    monkeypatch.setattr(checkpoint_folder, "read_gguf_as_config", lambda path: LLAMA)
    monkeypatch.setattr(loading, "load", lambda *_, **__: (Loaded(), Loaded()))
    export_model("smollm2", "yarn:factor=2", "transformers4", tmp_path / "out")
    written = json.loads((tmp_path / "out" / "tokenizer_config.json").read_text())
    assert written["tokenizer_class"] == "PreTrainedTokenizerFast"


def test_the_config_of_an_unpacked_gguf_file_names_its_class_and_its_dtype(tmp_path):
    config = checkpoint_folder.read_gguf_as_config(tiny_llama(tmp_path / "small.gguf"))
    assert (config["architectures"], config["dtype"]) == (["LlamaForCausalLM"], "bfloat16")
    assert "_name_or_path" not in config


def test_a_gguf_file_that_transformers_cannot_unpack_is_refused_in_one_line(tmp_path):
    path = str(small_gguf(tmp_path / "small.gguf", architecture="glm4moe"))
    with pytest.raises(rw.InputError, match=r"expected a \.gguf file that transformers can unpack") as caught:
        export_model(path, "yarn:factor=2", "vllm", tmp_path / "out")
    assert "\n" not in str(caught.value)


def test_the_config_of_mistral_that_vllm_would_prefer_is_not_linked(folder, tmp_path):
    (folder / "params.json").write_text('{"rope_theta": 10000}')
    export_model(str(folder), "yarn:factor=4", "vllm", tmp_path / "out")
    assert not (tmp_path / "out" / "params.json").exists()


@pytest.mark.parametrize("content", ["[]", "{", '{"model_max_length": "long"}'])
def test_a_malformed_tokenizer_config_is_linked_unchanged(folder, tmp_path, content):
    (folder / "tokenizer_config.json").write_text(content)
    export_model(str(folder), "yarn:factor=4", "transformers", tmp_path / "out")
    assert (tmp_path / "out" / "tokenizer_config.json").is_symlink()


def test_an_export_can_be_exported_again(folder, tmp_path):
    export_model(str(folder), "yarn:factor=4", "transformers", tmp_path / "yarn")
    export = export_model(str(tmp_path / "yarn"), "linear:factor=2", "transformers", tmp_path / "linear")
    written = json.loads((tmp_path / "linear" / "config.json").read_text())
    assert written["rope_parameters"] == {"rope_theta": 100_000.0, "rope_type": "linear", "factor": 2.0}
    assert written["max_position_embeddings"] == 8192, "linear is relative to the original length"
    assert export.length == 32_768
    assert any("more than the 16,384" in note for note in export.notes)


def test_without_a_folder_only_the_command_is_built(folder, tmp_path):
    before = sorted(tmp_path.rglob("*"))
    export = export_model(str(folder), "yarn:factor=4", "vllm")
    assert export.path is None
    assert "--hf-overrides" in export.command
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize("engine", [name for name, engine in ENGINES.items() if engine.checkpoint_format == "folder"])
def test_a_path_with_a_space_is_quoted_in_the_command(folder, tmp_path, engine):
    out = tmp_path / "my out"
    export = export_model(str(folder), "abf:base=500000", engine, out)
    assert str(out) in shlex.split(export.command)


@pytest.mark.parametrize("engine", ["vllm", "sglang", "lmdeploy"])
def test_the_command_names_the_folder_of_a_config_json(folder, tmp_path, engine):
    (tmp_path / "my model").symlink_to(folder)
    export = export_model(str(tmp_path / "my model" / "config.json"), "yarn:factor=4", engine)
    assert str(tmp_path / "my model") in shlex.split(export.command)


def test_a_gguf_file_needs_a_folder_to_be_unpacked_to(monkeypatch):
    monkeypatch.setattr(checkpoint_folder, "read_gguf_as_config", lambda path: LLAMA)
    with pytest.raises(rw.InputError, match=r"out: got None; expected a folder, .* needs SmolLM2.*\.gguf unpacked"):
        export_model("smollm2", "yarn:factor=2", "vllm")


@pytest.fixture
def hub(folder, tmp_path, monkeypatch):
    """Simulate a hub with one model, and record the files that are downloaded from it."""
    downloaded = []

    def snapshot_download(name, allow_patterns, ignore_patterns):
        assert name == "some/model"
        cache = tmp_path / "cache"
        cache.mkdir(exist_ok=True)
        for file in [*folder.iterdir(), *(folder / "original").glob("*")]:
            path = str(file.relative_to(folder))
            is_allowed = allow_patterns is None or path in allow_patterns
            if file.is_file() and is_allowed and not any(fnmatch(path, pattern) for pattern in ignore_patterns):
                downloaded.append(path)
                (cache / file.name).write_bytes(file.read_bytes())
        return str(cache)

    def try_to_load_from_cache(name, file):
        path = tmp_path / "cache" / file
        return str(path) if path.exists() else None

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    monkeypatch.setattr(huggingface_hub, "try_to_load_from_cache", try_to_load_from_cache)
    return downloaded


def test_weights_are_downloaded_only_to_be_linked_and_once(hub, folder, tmp_path):
    (folder / "original").mkdir()
    (folder / "original" / "consolidated.00.pth").write_bytes(b"the weights in another format")
    export = export_model("some/model", "yarn:factor=4", "vllm")
    assert export.command.startswith("VLLM_ALLOW_LONG_MAX_MODEL_LEN=1 vllm serve some/model ")
    assert set(hub) == {"config.json", "tokenizer_config.json"}
    export_model("some/model", "yarn:factor=4", "vllm", tmp_path / "out")
    assert "model.safetensors" in hub
    assert "original/consolidated.00.pth" not in hub
    assert (tmp_path / "out" / "model.safetensors").read_bytes() == b"weights"


def test_an_engine_without_an_override_option_requires_a_folder(folder):
    with pytest.raises(rw.InputError, match="out: got None; expected a folder"):
        export_model(str(folder), "yarn:factor=4", "transformers")


def test_a_dynamic_scaling_is_refused_with_the_nearest_static_one(folder, tmp_path):
    with pytest.raises(rw.InputError, match=r"SGLang .*\(the nearest is yarn:factor=4\)$"):
        export_model(str(folder), "dynamic-yarn", "sglang", tmp_path / "out", 32_768)
    assert not (tmp_path / "out").exists()
    with pytest.raises(rw.InputError, match="length: got None"):
        export_model(str(folder), "dynamic-yarn", "sglang", tmp_path / "out")


def test_a_note_warns_of_a_dynamic_scaling_for_a_model_that_has_one(folder):
    def notes_of_export():
        return export_model(str(folder), "dynamic-yarn", "vllm", length=32_768).notes

    assert not any("without the" in note for note in notes_of_export())
    llama3 = {
        "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    }  # fmt: skip
    (folder / "config.json").write_text(json.dumps({**LLAMA, "rope_scaling": llama3}))
    assert notes_of_export()[-1].startswith("texts of up to 8,192 tokens are read without the llama3 of")


def test_the_suggested_nearest_scaling_can_be_exported(folder):
    with pytest.raises(UnsupportedScalingError) as caught:
        export_model(str(folder), "dynamic-ntk:factor=2", "vllm", length=12_000)
    nearest = caught.value.nearest
    assert nearest.startswith("ntk:factor=1.9")
    assert export_model(str(folder), nearest, "vllm", length=12_000).encoded_as == "rope_theta"


def test_a_note_says_that_the_engine_fixes_one_of_two_lists(folder):
    short, long = [1.0] * 32, [1 + i / 10 for i in range(32)]
    spec = json.dumps({"rope_type": "longrope", "short_factor": short, "long_factor": long, "factor": 4.0})
    export = export_model(str(folder), spec, "vllm", length=32_768)
    assert export.encoded_as == ""
    assert any("short texts are scaled" in note for note in export.notes)


@pytest.mark.parametrize(
    ("model", "scaling", "engine", "message"),
    [
        ("{}/weights.json", "yarn:factor=4", "vllm", "a folder with config.json"),
        ("{}", "yarn:factor=4", "vllmm", "engine: got 'vllmm'.*did you mean vllm"),
        ("{}", "yarn", "vllm", "yarn: factor"),
        ("{}/missing", "yarn:factor=4", "vllm", "model"),
        ("{}/model.safetensors", "yarn:factor=4", "vllm", "model"),
    ],
)
def test_bad_input_is_reported_in_one_line(folder, model, scaling, engine, message):
    (folder / "weights.json").write_text("{}")
    with pytest.raises(rw.InputError, match=message) as caught:
        export_model(model.format(folder), scaling, engine)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("out", ["file", "file/out", "locked/out"])
def test_an_unwritable_folder_is_refused(folder, tmp_path, monkeypatch, out):
    (tmp_path / "file").write_text("mine")
    mkdir = Path.mkdir

    def locked(path, *args, **kwargs):
        if "locked" in path.parts:
            raise PermissionError(13, "Permission denied")
        mkdir(path, *args, **kwargs)

    monkeypatch.setattr(Path, "mkdir", locked)  # permissions would not stop root
    before = snapshot(tmp_path)
    with pytest.raises(rw.InputError, match=r"out: got .*a folder that can be"):
        export_model(str(folder), "yarn:factor=4", "transformers", tmp_path / out)
    assert snapshot(tmp_path) == before
