from __future__ import annotations

import json

import numpy as np
from tests.helpers.real_configs import real_config_path

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


def test_a_model_with_sliding_windows_in_every_layer_is_scaled_in_the_table_and_in_json(run, tmp_path):
    config = {"model_type": "beam", "layer_types": ["sliding_attention"] * 2, "num_hidden_layers": 2}
    sizes = {"head_dim": 16, "hidden_size": 64, "num_attention_heads": 4, "max_position_embeddings": 1024}
    rope_parameters = {"sliding_attention": {"rope_type": "default", "rope_theta": 1e4}}
    (tmp_path / "config.json").write_text(json.dumps({**config, **sizes, "rope_parameters": rope_parameters}))
    _, table, _ = run("frequencies", tmp_path, "--scaling", "linear:factor=2")
    _, out, _ = run("frequencies", tmp_path, "--scaling", "linear:factor=2", "--json")
    assert table.startswith("linear:factor=2 ")
    assert json.loads(out)["scaling"]["name"] == "linear"


def test_a_dynamic_scaling_has_the_frequencies_for_the_given_length(run, tiny_folder):
    _, out, _ = run("frequencies", tiny_folder, "--scaling", "dynamic-yarn", "--length", "256", "--json")
    assert np.array_equal(json.loads(out)["inv_freq"], rw.YaRN(factor=4).frequencies(ROPE).inv_freq)


def test_the_terminal_shows_a_table(run, tiny_folder):
    status, out, _ = run("frequencies", tiny_folder)
    assert status == 0
    assert "wavelength" in out
    assert len([line for line in out.splitlines() if "e-" in line or "e+" in line]) == ROPE.dim // 2


def test_table_has_every_layer_type(run):
    status, out, _ = run("frequencies", real_config_path("step35"))
    assert status == 0
    assert "full_attention: llama3:factor=2,high_freq_factor=32 on dim 64, base 5e+06" in out
    assert "sliding_attention: none on dim 128, base 10000" in out


def test_a_learned_scaling_is_read_from_its_file(run, tiny_folder, tmp_path):
    divisors = [1 + pair / 4 for pair in range(8)]
    rw.Learned(divisors, attention_factor=1.25).write(tmp_path / "scaling.json")
    _, out, _ = run("frequencies", tiny_folder, "--scaling", tmp_path / "scaling.json", "--json")
    document = json.loads(out)
    np.testing.assert_allclose(document["inv_freq"], ROPE.inv_freq / divisors)
    assert document["attention_factor"] == 1.25


def test_a_set_for_each_layer_is_shown_by_layer_and_in_sum(run, tiny_folder, tmp_path):
    divisors = [[1 + (layer + 1) * pair / 4 for pair in range(8)] for layer in range(2)]
    rw.Learned(divisors, attention_factor=(1.25, 1.5)).write(tmp_path / "scaling.json")
    scaling = f"learned:file={tmp_path / 'scaling.json'}"
    _, out, _ = run("frequencies", tiny_folder, "--scaling", scaling, "--json")
    layers = json.loads(out)["decoder_layers"]
    for layer, expected in zip(layers, divisors, strict=True):
        np.testing.assert_allclose(layer["inv_freq"], ROPE.inv_freq / expected)
    assert [layer["attention_factor"] for layer in layers] == [1.25, 1.5]
    status, out, _ = run("frequencies", tiny_folder, "--scaling", scaling)
    assert status == 0
    # pair 7: the divisors are 2.75 and 4.5
    assert ["7", "3.162278e-04", f"{(1 / 2.75 + 1 / 4.5) / 2:.4f}", "0.2222", "0.3636"] in [
        line.split() for line in out.splitlines()
    ]


def test_pairs_that_the_model_does_not_rotate_stay_unrotated(run):
    _, out, _ = run("frequencies", real_config_path("gemma4_31b"), "--scaling", "linear:factor=2", "--json")
    inv_freq = np.array(json.loads(out)["inv_freq"])
    assert np.count_nonzero(inv_freq) == 64  # a quarter of 256 pairs
    assert inv_freq[0] == 0.5


def test_model_without_rotary_embedding_gets_one_line(run):
    status, out, err = run("frequencies", real_config_path("granite4_h"))
    assert (status, out) == (2, "")
    assert "it has no rotary embedding (position_embedding_type is nope)" in err
