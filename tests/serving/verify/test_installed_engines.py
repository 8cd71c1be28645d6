"""The real engines, each in its own environment, on the built-in model: `make test-engines`.

benchmarks/verify_engines.py runs every engine with every scaling at 12,000 tokens and keeps the results. Here each
engine runs once past the original length, and two engines get each fault that can be exported, on a short text.
"""

from __future__ import annotations

import json

import pytest

from ropewalk.serving.export import export_model
from ropewalk.serving.verify import verify

pytestmark = pytest.mark.engines

PAST_ORIGINAL_LENGTH = 8704  # tokens; the original length is 8,192
SHORT_LENGTH = 1024
EXPECTED = "yarn:factor=2"
LISTS_ONLY = "ntk-by-parts:factor=2,ramp=rotations"  # engines have no name for it: longrope lists or a tensor
ATTENTION_FACTOR = 1.0693147180559945  # 0.1 ln 2 + 1
FAULTS = {
    "factor off by a quarter": "yarn:factor=2.25",
    "scaling ignored": "none",
    "attention factor dropped": "yarn:factor=2,attention_factor=1",
    "attention factor twice": f"yarn:factor=2,attention_factor={ATTENTION_FACTOR**2}",
    "wrong original length": "yarn:factor=2,original_length=4096",
}


@pytest.fixture(scope="module")
def model_folder(work):
    """The built-in model as a folder, for engines that cannot load a GGUF file."""
    import ropewalk as rw

    model, tokenizer = rw.load("smollm2", dtype="float32")
    model.save_pretrained(work / "smollm2")
    tokenizer.save_pretrained(work / "smollm2")
    return str(work / "smollm2")


def model_for(engine, model_folder):
    return "smollm2" if engine == "llama.cpp" else model_folder


@pytest.mark.parametrize("engine", ["transformers", "transformers4", "vllm", "llama.cpp"])
def test_passes_past_the_original_length(engine, model_folder, work):
    result = verify(model_for(engine, model_folder), EXPECTED, engine, length=PAST_ORIGINAL_LENGTH, work=work)
    assert result.verdict == "pass", result.why
    assert result.behaviour["ignored"] > 100 * result.behaviour["control"]


@pytest.mark.parametrize("engine", ["transformers4", "vllm", "llama.cpp"])
@pytest.mark.parametrize(
    "scaling", ["none", "linear:factor=2", "ntk:factor=2", "yarn:factor=4", "llama3:factor=4", LISTS_ONLY]
)
def test_exported_scaling_passes(engine, scaling, model_folder, work):
    result = verify(model_for(engine, model_folder), scaling, engine, length=SHORT_LENGTH, work=work)
    assert result.verdict == "pass", result.why


@pytest.mark.parametrize("engine", ["vllm", "llama.cpp"])
@pytest.mark.parametrize("fault", FAULTS)
def test_exported_fault_fails(engine, fault, model_folder, work, tmp_path):
    model = model_for(engine, model_folder)
    export = export_model(model, FAULTS[fault], engine, tmp_path, SHORT_LENGTH)
    result = verify(model, EXPECTED, engine, length=SHORT_LENGTH, served=export.path, work=work)
    assert result.behaviour["verdict"] == "fail"
    assert result.behaviour["ratio"] >= 10
    if engine == "vllm":
        assert result.tables["verdict"] == "fail"


@pytest.mark.parametrize(
    "fields",
    [
        pytest.param({"rope_theta": 125_000.0}, id="base wrong"),
        pytest.param({"beta_fast": 1.0, "beta_slow": 32.0}, id="betas swapped"),
    ],
)
def test_fault_written_into_the_config_fails(fields, model_folder, work, tmp_path):
    export = export_model(model_folder, EXPECTED, "vllm", tmp_path, SHORT_LENGTH)
    path = tmp_path / "config.json"
    config = json.loads(path.read_text())
    config["rope_parameters"].update(fields)
    path.write_text(json.dumps(config))
    result = verify(model_folder, EXPECTED, "vllm", length=SHORT_LENGTH, served=export.path, work=work)
    assert result.tables["ratio"] >= 10
    assert result.behaviour["ratio"] >= 10
    assert result.verdict == "fail"
