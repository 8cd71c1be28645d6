from __future__ import annotations

import json

import numpy as np

import ropewalk as rw

ROPE = rw.Rope(16, 10_000.0, 64)  # of the tiny model


def test_json_has_the_frequencies_and_factors(run, tiny_folder):
    status, out, _ = run("frequencies", tiny_folder, "--scaling", "yarn:factor=4", "--json")
    document = json.loads(out)
    expected = rw.YaRN(factor=4).frequencies(ROPE)
    assert status == 0
    assert document["scaling"]["name"] == "yarn"
    assert document["rope"] == {"dim": 16, "base": 10_000.0, "original_length": 64}
    assert document["length"] is None
    assert np.array_equal(document["inv_freq"], expected.inv_freq)
    assert (document["attention_factor"], document["softmax_factor"]) == (expected.attention_factor, 1.0)


def test_layers_with_a_sliding_window_are_not_scaled(run, tmp_path):
    config = {
        "model_type": "gemma3_text", "head_dim": 16, "hidden_size": 64, "num_attention_heads": 4,
        "max_position_embeddings": 1024, "rope_theta": 1e6, "rope_local_base_freq": 1e4,
    }  # fmt: skip
    (tmp_path / "config.json").write_text(json.dumps(config))
    _, out, _ = run("frequencies", tmp_path, "--scaling", "linear:factor=2", "--json")
    layers = json.loads(out)["layers"]
    assert layers["full_attention"]["inv_freq"][0] == 0.5
    assert layers["sliding_attention"]["inv_freq"][0] == 1.0


def test_a_dynamic_scaling_has_the_frequencies_for_the_given_length(run, tiny_folder):
    _, out, _ = run("frequencies", tiny_folder, "--scaling", "dynamic-yarn", "--length", "256", "--json")
    assert np.array_equal(json.loads(out)["inv_freq"], rw.YaRN(factor=4).frequencies(ROPE).inv_freq)


def test_the_terminal_shows_a_table(run, tiny_folder):
    status, out, _ = run("frequencies", tiny_folder)
    assert status == 0
    assert "wavelength" in out
    assert len([line for line in out.splitlines() if "e-" in line or "e+" in line]) == ROPE.dim // 2
