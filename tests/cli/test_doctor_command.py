from __future__ import annotations

import json

import pytest

SOUND = {
    "model_type": "llama", "hidden_size": 1024, "num_hidden_layers": 2, "num_attention_heads": 16,
    "max_position_embeddings": 131_072, "rope_theta": 500_000.0,
    "rope_scaling": {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32_768},
}  # fmt: skip


@pytest.fixture
def config(tmp_path):
    """Writes a config.json with some rope fields changed, and gives its path."""

    def write(**changes):
        path = tmp_path / "config.json"
        path.write_text(json.dumps({**SOUND, "rope_scaling": {**SOUND["rope_scaling"], **changes}}))
        return path

    return write


def test_nothing_found(run, config):
    status, out, _ = run("doctor", config())
    assert status == 0
    assert "nothing found" in out
    assert "exllamav2 reads" in out


def test_something_wrong(run, config):
    status, out, _ = run("doctor", config(factor=2.0))
    assert status == 1
    for part in (
        "wrong",
        "factor-too-small",
        "rope_scaling.factor = 2.0",
        "rope_scaling.factor = 4.0",
        "65,536",
        "cosine",
    ):
        assert part in out


def test_something_suspicious_is_not_wrong(run, config):
    status, out, _ = run("doctor", config(low_freq_factor=1.0))
    assert status == 0
    assert "suspicious" in out
    assert "take rope_scaling.low_freq_factor away" in out


def test_as_json(run, config):
    path = config(factor=2.0)
    status, out, _ = run("doctor", path, "--json")
    document = json.loads(out)
    assert status == 1
    assert (document["model"], document["engine"]) == (str(path), None)
    [finding] = document["findings"]
    assert set(finding) == {"kind", "severity", "field", "found", "means", "fix", "position", "cosine", "scores"}
    assert finding["fix"] == {"rope_scaling.factor": 4.0}
    assert "exllamav2" in document["engines"]


def test_for_an_engine_and_a_target(run, config):
    status, out, _ = run("doctor", config(), "--engine", "vllm", "--target", "64k", "--json")
    assert status == 0
    assert json.loads(out) == {"model": str(config()), "engine": "vllm", "findings": [], "engines": {}}
    status, out, _ = run("doctor", config(), "--target", "256k", "--json")
    assert status == 0
    assert [each["kind"] for each in json.loads(out)["findings"]] == ["target-not-reached"]
    status, out, _ = run("doctor", config(), "--engine", "exllamav2", "--json")
    assert status == 1
    assert json.loads(out)["findings"][0]["kind"] == "engine-reads-otherwise"


def test_a_target_that_a_gguf_does_not_reach(run):
    status, out, _ = run("doctor", "smollm2", "--target", "32k")
    assert status == 0
    assert "target-not-reached" in out
    assert 'llama.rope.scaling.type = "yarn"' in out


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("nowhere/config.json",), "a file or folder that exists"),
        (("smollm2", "--engine", "vllm"), "a folder with config.json"),
        (("smollm2", "--engine", "nobody"), "engine: got 'nobody'"),
        (("smollm2", "--target", "far"), "target: got 'far'"),
    ],
)
def test_a_call_that_is_wrong(run, arguments, says):
    status, out, err = run("doctor", *arguments)
    assert (status, out) == (2, "")
    assert says in err
    assert err.count("\n") == 1
