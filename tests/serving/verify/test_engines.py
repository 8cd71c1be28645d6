"""The real engines, each in its own environment, on the built-in model: `make test-engines`.

The whole grid, every scaling at 12,000 tokens, is benchmarks/verify_engines.py, whose results are kept. Here every
engine reads past the trained length once, and every fault that can be written is shown to two of them on a short text.
"""

from __future__ import annotations

import json

import pytest

from ropewalk.serving.export import export_model
from ropewalk.serving.verify import verify

pytestmark = pytest.mark.engines

PAST = 8704  # of 8,192 trained tokens
SHORT = 1024
MEANT = "yarn:factor=2"
LISTS = "ntk-by-parts:factor=2,ramp=rotations"  # which only lists or a tensor can say
ATTENTION = 1.0693147180559945  # 0.1 ln 2 + 1
FAULTS = {
    "factor off by a quarter": "yarn:factor=2.25",
    "scaling ignored": "none",
    "attention factor dropped": "yarn:factor=2,attention_factor=1",
    "attention factor twice": f"yarn:factor=2,attention_factor={ATTENTION**2}",
    "wrong original length": "yarn:factor=2,original_length=4096",
}


@pytest.fixture(scope="module")
def folder(work):
    """The built-in model as a folder, which engines need that read no GGUF."""
    import ropewalk as rw

    model, tokenizer = rw.load("smollm2", dtype="float32")
    model.save_pretrained(work / "smollm2")
    tokenizer.save_pretrained(work / "smollm2")
    return str(work / "smollm2")


def model_for(engine, folder):
    return "smollm2" if engine == "llama.cpp" else folder


@pytest.mark.parametrize("engine", ["transformers", "transformers4", "vllm", "llama.cpp"])
def test_past_the_trained_length(engine, folder, work):
    found = verify(model_for(engine, folder), MEANT, engine, length=PAST, work=work)
    assert found.verdict == "pass", found.why
    assert found.behaviour["ignored"] > 100 * found.behaviour["control"]


@pytest.mark.parametrize("engine", ["transformers4", "vllm", "llama.cpp"])
@pytest.mark.parametrize(
    "scaling", ["none", "linear:factor=2", "ntk:factor=2", "yarn:factor=4", "llama3:factor=4", LISTS]
)
def test_every_scaling(engine, scaling, folder, work):
    found = verify(model_for(engine, folder), scaling, engine, length=SHORT, work=work)
    assert found.verdict == "pass", found.why


@pytest.mark.parametrize("engine", ["vllm", "llama.cpp"])
@pytest.mark.parametrize("planted", FAULTS)
def test_faults(engine, planted, folder, work, tmp_path):
    model = model_for(engine, folder)
    made = export_model(model, FAULTS[planted], engine, tmp_path, SHORT)
    found = verify(model, MEANT, engine, length=SHORT, served=made.path, work=work)
    assert found.behaviour["verdict"] == "fail"
    assert found.behaviour["ratio"] >= 10
    if engine == "vllm":
        assert found.tables["verdict"] == "fail"


@pytest.mark.parametrize(
    "rope",
    [
        pytest.param({"rope_theta": 125_000.0}, id="base wrong"),
        pytest.param({"beta_fast": 1.0, "beta_slow": 32.0}, id="betas swapped"),
    ],
)
def test_faults_that_are_written_by_hand(rope, folder, work, tmp_path):
    made = export_model(folder, MEANT, "vllm", tmp_path, SHORT)
    path = tmp_path / "config.json"
    config = json.loads(path.read_text())
    config["rope_parameters"].update(rope)
    path.write_text(json.dumps(config))
    found = verify(folder, MEANT, "vllm", length=SHORT, served=made.path, work=work)
    assert found.tables["ratio"] >= 10
    assert found.behaviour["ratio"] >= 10
    assert found.verdict == "fail"
