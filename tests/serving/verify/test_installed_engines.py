"""The real engines, each in its own environment: `make test-engines`.

benchmarks/verify_engines.py runs every engine with every scaling on the built-in model at 12,000 tokens and keeps the
results. Here small random models read every scaling and fault, on texts twice as long as the original length, because
positions past it are what counts, not many of them; the built-in model reads one scaling on each engine.

llama.cpp loads only GGUF files, whose context length must not exceed what the factor reaches. So the scalings have
another original length there.
"""

from __future__ import annotations

import json

import pytest
from tests.helpers.gguf_model import tiny_llama

from ropewalk.serving.engines import find_engine
from ropewalk.serving.export import export_model
from ropewalk.serving.verify import verify
from ropewalk.serving.verify.environments import find_python
from ropewalk.serving.vllm_plugin import runners

pytestmark = pytest.mark.engines

LENGTH, GGUF_LENGTH = 128, 512  # tokens
ORIGINAL_LENGTH = ",original_length=64"
EXPECTED = f"yarn:factor=2{ORIGINAL_LENGTH}"
SCALINGS = [
    "none",
    EXPECTED,
    "linear:factor=2",
    "ntk:factor=2",
    f"yarn:factor=4{ORIGINAL_LENGTH}",
    f"llama3:factor=4{ORIGINAL_LENGTH}",
    # Engines have no name for it: longrope lists or a tensor.
    f"ntk-by-parts:factor=2,ramp=rotations{ORIGINAL_LENGTH}",
]
ATTENTION_FACTOR = 1.0693147180559945  # 0.1 ln 2 + 1
FAULTS = {
    "factor off by a quarter": EXPECTED.replace("factor=2", "factor=2.25"),
    "scaling ignored": "none",
    "attention factor dropped": f"{EXPECTED},attention_factor=1",
    "attention factor twice": f"{EXPECTED},attention_factor={ATTENTION_FACTOR**2}",
    "wrong original length": "yarn:factor=2,original_length=WRONG",
}


@pytest.fixture(scope="session")
def gguf_model(tmp_path_factory):
    """Path of a random Llama with original length 512."""
    return str(tiny_llama(tmp_path_factory.mktemp("gguf") / "tiny.gguf"))


@pytest.fixture
def model_and_length(engine, small_model, gguf_model):
    """The model to verify on an engine, and the length of the text."""
    return (gguf_model, GGUF_LENGTH) if engine == "llama.cpp" else (small_model, LENGTH)


def adapt(scaling, engine):
    """Return the spec of a scaling for the model of an engine."""
    if engine == "llama.cpp":
        return scaling.replace(ORIGINAL_LENGTH, ",original_length=256").replace("WRONG", "384")
    return scaling.replace("WRONG", "128")  # 96 would have the frequencies of 64: the ends of the ramp are whole pairs


@pytest.mark.parametrize(
    ("engine", "scaling", "length"),
    [
        ("transformers", EXPECTED, LENGTH),
        ("transformers4", EXPECTED, LENGTH),
        ("vllm", EXPECTED, LENGTH),
        ("llama.cpp", "yarn:factor=2,original_length=4096", 1024),
    ],
)
def test_built_in_model_passes(engine, scaling, length, work):
    result = verify("smollm2", scaling, engine, length=length, work=work)
    assert result.verdict == "pass", result.why
    assert result.behaviour["ignored"] > 100 * result.behaviour["control"]


@pytest.mark.parametrize("engine", ["transformers4", "vllm", "llama.cpp"])
@pytest.mark.parametrize("scaling", SCALINGS)
def test_exported_scaling_passes(engine, scaling, model_and_length, work):
    model, length = model_and_length
    result = verify(model, adapt(scaling, engine), engine, length=length, work=work)
    assert result.verdict == "pass", result.why


@pytest.mark.parametrize("engine", ["vllm", "llama.cpp"])
@pytest.mark.parametrize("fault", FAULTS)
def test_exported_fault_fails(engine, fault, model_and_length, work, tmp_path):
    model, length = model_and_length
    export = export_model(model, adapt(FAULTS[fault], engine), engine, tmp_path, length)
    result = verify(model, adapt(EXPECTED, engine), engine, length=length, served=export.path, work=work)
    assert result.behaviour["verdict"] == "fail"
    assert result.behaviour["ratio"] >= 10
    if engine == "vllm":
        assert result.tables["verdict"] == "fail"


@pytest.mark.parametrize(
    "fields",
    [
        pytest.param({"rope_theta": 12_500.0}, id="base wrong"),
        pytest.param({"beta_fast": 1.0, "beta_slow": 32.0}, id="betas swapped"),
    ],
)
def test_fault_written_into_the_config_fails(fields, small_model, work, tmp_path):
    export = export_model(small_model, EXPECTED, "vllm", tmp_path, LENGTH)
    path = tmp_path / "config.json"
    config = json.loads(path.read_text())
    config["rope_parameters"].update(fields)
    path.write_text(json.dumps(config))
    result = verify(small_model, EXPECTED, "vllm", length=LENGTH, served=export.path, work=work)
    assert result.tables["ratio"] >= 10
    assert result.behaviour["ratio"] >= 10
    assert result.verdict == "fail"


@pytest.fixture
def faulty_vllm(tmp_path):
    """A Python of vLLM whose plugin, if FAULT is set, does not shift positions to the rows of a request's factor."""
    assert callable(runners._shift)  # a new name would make the fault do nothing
    (tmp_path / "sitecustomize.py").write_text(
        "import os\n"
        "if 'FAULT' in os.environ:\n"
        "    from ropewalk.serving.vllm_plugin import runners\n"
        "    runners._shift = lambda positions, first_rows, tokens: None\n"
    )
    python = tmp_path / "python"
    python.write_text(f'#!/bin/sh\nPYTHONPATH={tmp_path} exec {find_python(find_engine("vllm"))} "$@"\n')
    python.chmod(0o755)
    return str(python)


def test_request_factors_pass_and_fail_if_positions_are_not_shifted(small_model, faulty_vllm, work, monkeypatch):
    right = verify(small_model, "dynamic-yarn", "vllm", length=256, work=work, python=faulty_vllm)
    assert right.verdict == "pass", right.why
    assert right.behaviour["ignored"] > 100 * right.behaviour["control"]
    assert set(right.batch["factors"]) == {1, 2, 4}
    monkeypatch.setenv("FAULT", "1")
    wrong = verify(small_model, "dynamic-yarn", "vllm", length=256, work=work, python=faulty_vllm)
    assert wrong.tables["verdict"] == "pass"
    assert wrong.behaviour["verdict"] == wrong.batch["verdict"] == "fail"
