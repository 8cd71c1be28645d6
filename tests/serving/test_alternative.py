"""What to serve instead of a dynamic scaling: the static one that covers the length, and two servers."""

from __future__ import annotations

import json
import shlex
from pathlib import Path

import pytest

import ropewalk as rw
from ropewalk.serving import alternative as module
from ropewalk.serving.alternative import find_alternative
from ropewalk.serving.engines import ENGINES
from ropewalk.serving.export import export_model

RESULTS = Path(__file__).parents[2] / "benchmarks" / "results"
LLAMA = {
    "model_type": "llama", "hidden_size": 256, "num_attention_heads": 4, "num_hidden_layers": 2,
    "max_position_embeddings": 8192, "rope_theta": 100_000.0, "rope_scaling": None, "vocab_size": 97,
}  # fmt: skip
LONGROPE = {"rope_type": "longrope", "short_factor": [1.0] * 32, "long_factor": [2.0] * 32, "factor": 2.0}


@pytest.fixture
def folder(tmp_path):
    """The configuration of a Llama that was trained on 8,192 tokens."""
    source = tmp_path / "model"
    source.mkdir()
    (source / "config.json").write_text(json.dumps(LLAMA))
    return str(source)


def test_static_yarn_covers_the_length_and_the_untouched_model_serves_up_to_the_original_one(folder):
    alternative = find_alternative(folder, "dynamic-yarn", "sglang", 20_480)
    untouched, extended = alternative.servers
    assert alternative.scaling == extended.scaling == "yarn:factor=2.5"
    assert (alternative.route_at, untouched.length, extended.length) == (8192, 8192, 20_480)
    assert untouched.commands == (f"python -m sglang.launch_server --model-path {folder} --context-length 8192",)
    assert extended.commands == (export_model(folder, "yarn:factor=2.5", "sglang", None, 20_480).command,)
    assert "--engine vllm" in alternative.follows_requests
    assert json.loads(json.dumps(alternative.to_dict()))["servers"][0]["scaling"] == "none"


@pytest.mark.parametrize("engine", [name for name in ENGINES if name != "vllm"])
def test_every_engine_has_one_whose_commands_start_both_servers(folder, tmp_path, monkeypatch, engine):
    """An engine that takes no changes on its command line gets a folder, which the first command writes."""
    monkeypatch.chdir(tmp_path)
    model = folder if ENGINES[engine].checkpoint_format == "folder" else "smollm2"
    alternative = find_alternative(model, "dynamic-yarn", engine, 16_384)
    assert alternative.scaling == "yarn:factor=2"
    for server in alternative.servers:
        *export, start = server.commands
        assert shlex.split(start)
        if not export:
            continue
        argv = shlex.split(export[0])
        assert argv[:3] == ["ropewalk", "export", model]
        options = dict(zip(argv[3::2], argv[4::2], strict=True))
        if ENGINES[engine].checkpoint_format == "gguf":
            continue  # a copy of the weights
        written = export_model(model, options["--scaling"], engine, options["--out"], int(options["--length"]))
        assert written.command == start


def test_dynamic_ntk_is_replaced_by_the_nearest_ntk(folder):
    alternative = find_alternative(folder, "dynamic-ntk:factor=2", "vllm", 16_384)
    assert alternative.scaling == "ntk:factor=3"  # 2 x 16,384 / 8,192 - (2 - 1)
    assert alternative.follows_requests.endswith("--scaling dynamic-yarn")


def test_a_dynamic_type_whose_cached_keys_are_stale_has_one_too(folder):
    alternative = find_alternative(folder, "dynamic-ntk", "transformers", 16_384)
    assert alternative.scaling.startswith("ntk")
    assert "rw.extend" in alternative.follows_requests


def test_the_first_server_of_a_scaled_configuration_is_unscaled_with_a_warning(folder):
    assert find_alternative(folder, "dynamic-yarn", "sglang", 32_768).warning == ""
    yarn = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 8192}
    config = {**LLAMA, "max_position_embeddings": 32_768, "rope_scaling": yarn}
    (Path(folder) / "config.json").write_text(json.dumps(config))
    alternative = find_alternative(folder, "dynamic-yarn", "sglang", 32_768)
    assert '"rope_type": "default"' in alternative.servers[0].commands[0]
    assert "without the yarn of the configuration: wrong if the model was trained with it" in alternative.warning


@pytest.mark.parametrize(
    ("scaling", "engine", "length"),
    [
        ("yarn:factor=4", "sglang", 32_768),  # not dynamic
        ("dynamic-yarn", "vllm", 32_768),  # the plugin serves it
        ("dynamic-yarn", "sglang", 8192),  # needs no scaling
        ("log-ntk:factor=2", "sglang", 16_384),  # no static scaling is like it
        ("power-ntk", "sglang", 16_384),
        (LONGROPE, "vllm", 16_384),  # its short list is not the unscaled model
    ],
)
def test_there_is_none_where_none_is_needed_or_none_is_near(folder, scaling, engine, length):
    assert find_alternative(folder, scaling, engine, length) is None


@pytest.mark.parametrize(
    ("name", "expected"), [("Qwen2.5-7B", "Qwen2.5-7B-8192"), ("Qwen2.5-7B/config.json", "Qwen2.5-7B-8192")]
)
def test_folders_are_named_after_the_model(tmp_path, name, expected):
    (tmp_path / "Qwen2.5-7B").mkdir()
    (tmp_path / "Qwen2.5-7B" / "config.json").write_text(
        json.dumps({**LLAMA, "rope_scaling": {"type": "dynamic", "factor": 2.0}})
    )
    untouched, _ = find_alternative(str(tmp_path / name), "dynamic-yarn", "tgi", 16_384).servers
    assert untouched.commands[0].endswith(f" --out {expected}")


def test_the_measured_perplexities_are_those_of_the_benchmarks():
    rows = [
        row
        for run in ("demo", "short_text")
        for row in json.loads((RESULTS / run / "curve.json").read_text())["rows"]
        if row["length"] == module.MEASURED_LENGTH and not rw.parse(row["scaling"]).is_dynamic
    ]
    measured = {row["scaling"]: round(row["ppl"], 2) for row in rows}
    assert measured == module.MEASURED_PERPLEXITY
