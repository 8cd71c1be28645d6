from __future__ import annotations

import json

import pytest

SOUND_CONFIG = {
    "model_type": "llama", "hidden_size": 1024, "num_hidden_layers": 2, "num_attention_heads": 16,
    "max_position_embeddings": 131_072, "rope_theta": 500_000.0,
    "rope_scaling": {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32_768},
}  # fmt: skip


@pytest.fixture
def write_config(tmp_path):
    """Write a config.json with changed rope fields and return its path."""

    def write(**changes):
        path = tmp_path / "config.json"
        path.write_text(json.dumps({**SOUND_CONFIG, "rope_scaling": {**SOUND_CONFIG["rope_scaling"], **changes}}))
        return path

    return write


def test_a_sound_configuration_has_no_findings(run, write_config):
    status, out, _ = run("doctor", write_config())
    assert status == 0
    assert "nothing found" in out
    assert "exllamav2 " in out


def test_a_wrong_factor_is_shown_with_its_effect_and_its_fix(run, write_config):
    status, out, _ = run("doctor", write_config(factor=2.0))
    assert status == 1
    shown = ("rope_scaling.factor = 2.0", "rope_scaling.factor = 4.0", "65,536", "cosine")
    assert all(part in out for part in ("wrong", "factor-too-small", *shown))


def test_a_suspicious_field_does_not_fail(run, write_config):
    status, out, _ = run("doctor", write_config(low_freq_factor=1.0))
    assert status == 0
    assert "suspicious" in out
    assert "remove rope_scaling.low_freq_factor" in out


def test_json_has_the_findings_and_the_engines(run, write_config):
    path = write_config(factor=2.0)
    status, out, _ = run("doctor", path, "--json")
    document = json.loads(out)
    assert status == 1
    assert (document["model"], document["engine"]) == (str(path), None)
    [finding] = document["findings"]
    assert set(finding) == {
        "kind", "severity", "field", "found", "means", "fix", "question", "alternatives", "position", "cosine",
        "scores",
    }  # fmt: skip
    assert finding["fix"] == {"rope_scaling.factor": 4.0}
    assert "exllamav2" in document["engines"]


@pytest.mark.parametrize(
    ("options", "expected_status", "kinds"),
    [
        (("--engine", "vllm", "--target", "64k"), 0, []),
        (("--target", "256k"), 0, ["target-not-reached"]),
        (("--engine", "exllamav2"), 1, ["engine-reads-otherwise"]),
    ],
)
def test_an_engine_and_a_target_are_taken_into_account(run, write_config, options, expected_status, kinds):
    status, out, _ = run("doctor", write_config(), *options, "--json")
    assert status == expected_status
    assert [finding["kind"] for finding in json.loads(out)["findings"]] == kinds


def test_for_one_engine_the_others_are_not_reported(run, write_config):
    path = write_config()
    _, out, _ = run("doctor", path, "--engine", "vllm", "--target", "64k", "--json")
    assert json.loads(out) == {"model": str(path), "engine": "vllm", "findings": [], "engines": {}}


def test_a_target_past_the_context_length_of_a_gguf_file_is_reported_with_a_fix(run):
    status, out, _ = run("doctor", "smollm2", "--target", "32k")
    assert status == 0
    assert "target-not-reached" in out
    assert 'llama.rope.scaling.type = "yarn"' in out
