"""The frequencies that vLLM computes from a configuration, against values worked out by hand from its source."""

from __future__ import annotations

import json
import math
import shlex

import numpy as np
import pytest

import ropewalk as rw
from ropewalk.errors import UnsupportedScalingError
from ropewalk.serving.engines import ENGINES
from ropewalk.serving.engines.encode import encode
from ropewalk.serving.engines.trained_config import interpret_as_trained

VLLM = ENGINES["vllm"]
PLAIN = {
    "model_type": "llama",
    "hidden_size": 256,
    "num_attention_heads": 4,
    "num_hidden_layers": 2,
    "head_dim": 64,
    "max_position_embeddings": 8192,
    "rope_theta": 100_000.0,
}
THETA = 100_000.0 ** (-np.arange(0, 64, 2) / 64)


def vllm_frequencies(rope, length=8192, **fields):
    config = {**PLAIN, "rope_parameters": {"rope_theta": 100_000.0, **rope}, **fields}
    layer = VLLM.interpret(config, length).ropes["all"]
    return layer.scaling.frequencies(layer.rope)


@pytest.mark.parametrize("length", [8192, 16_384])
def test_dynamic_scales_nothing_and_has_a_short_table(length):
    with pytest.raises(rw.InputError, match=r"it serves 16,384 tokens, but its table ends at .*8,192, up to which"):
        vllm_frequencies({"rope_type": "dynamic", "factor": 2.0}, length)


def test_dynamic_with_max_trained_positions_is_static():
    found = vllm_frequencies({"rope_type": "dynamic", "factor": 2.0, "max_trained_positions": 4096})
    base = 100_000.0 * (2 * 8192 / 4096 - 1) ** (64 / 62)
    np.testing.assert_allclose(found.inv_freq, base ** (-np.arange(0, 64, 2) / 64), rtol=1e-12)


def test_dynamic_with_alpha_is_ntk_aware():
    found = vllm_frequencies({"rope_type": "dynamic", "alpha": 1000.0, "factor": 1.0})
    base = 100_000.0 * 1000 ** (64 / 62)
    np.testing.assert_allclose(found.inv_freq, base ** (-np.arange(0, 64, 2) / 64), rtol=1e-12)


def test_ntk_is_the_fixed_or_mixed_variant_of_kexue():
    found = vllm_frequencies({"rope_type": "ntk", "factor": 4.0})
    expected = 400_000.0 ** (-np.arange(0, 64, 2) / 64) / 4 ** (2 / 64)
    np.testing.assert_allclose(found.inv_freq, expected, rtol=1e-12)
    mixed = vllm_frequencies({"rope_type": "ntk", "factor": 4.0, "mixed_b": 0.5})
    expected = THETA / np.exp(math.log(4) / 32**0.5 * np.arange(1, 33) ** 0.5)
    np.testing.assert_allclose(mixed.inv_freq, expected, rtol=1e-12)


def test_attention_factors_of_yarn():
    yarn = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 8192}
    assert vllm_frequencies(yarn).attention_factor == pytest.approx(0.1 * math.log(4) + 1, rel=1e-12)
    assert vllm_frequencies({**yarn, "attention_factor": 1.5}).attention_factor == 1.5
    pair = vllm_frequencies({**yarn, "mscale": 0.7, "mscale_all_dim": 1.0})
    assert pair.attention_factor == pytest.approx((0.07 * math.log(4) + 1) / (0.1 * math.log(4) + 1), rel=1e-12)
    assert pair.softmax_factor == 1, "the attention of Llama leaves the softmax scale alone"


def test_deepseek_attention_scales_the_softmax_and_ignores_the_attention_factor():
    fields = {"model_type": "deepseek_v3", "qk_rope_head_dim": 64, "max_position_embeddings": 163_840}
    yarn = {"rope_type": "yarn", "factor": 40.0, "original_max_position_embeddings": 4096, "attention_factor": 2.0}
    found = vllm_frequencies({**yarn, "mscale": 1.0, "mscale_all_dim": 1.0}, **fields)
    assert found.attention_factor == pytest.approx(1.0)
    assert found.softmax_factor == pytest.approx((0.1 * math.log(40) + 1) ** 2, rel=1e-12)
    unscaled_softmax = vllm_frequencies({**yarn, "attention_factor": 1.0, "mscale_all_dim": 1.0}, **fields)
    assert unscaled_softmax.softmax_factor == 1


def test_deepseek_attention_takes_every_type_for_yarn():
    fields = {"model_type": "deepseek_v3", "qk_rope_head_dim": 64, "max_position_embeddings": 163_840}
    llama3 = {"rope_type": "llama3", "factor": 4.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
    scaled = {**llama3, "original_max_position_embeddings": 4096}
    yarn = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 4096}
    assert vllm_frequencies(scaled, **fields) == vllm_frequencies(yarn, **fields)
    with pytest.raises(rw.InputError, match="original_max_position_embeddings: got None"):
        vllm_frequencies({"rope_type": "linear", "factor": 4.0}, **fields)


def test_latent_attention_of_minicpm3_leaves_the_softmax_scale_alone():
    fields = {"model_type": "minicpm3", "architectures": ["MiniCPM3ForCausalLM"], "qk_rope_head_dim": 64}
    yarn = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 8192, "mscale": 1.0}
    found = vllm_frequencies({**yarn, "mscale_all_dim": 1.0}, **fields)
    assert (found.attention_factor, found.softmax_factor) == (1, 1)


def test_longrope_reads_short_mscale_and_long_mscale():
    short, long = [1.0] * 32, [2.0] * 32
    lists = {"rope_type": "longrope", "short_factor": short, "long_factor": long, "attention_factor": 1.7}
    lists["original_max_position_embeddings"] = 4096
    found = vllm_frequencies(lists, length=8192)
    assert found.attention_factor == pytest.approx(math.sqrt(1 + math.log(2) / math.log(4096)), rel=1e-12)
    np.testing.assert_allclose(found.inv_freq, THETA / 2, rtol=1e-12)
    np.testing.assert_allclose(vllm_frequencies(lists, length=4096).inv_freq, THETA, rtol=1e-12)
    assert vllm_frequencies({**lists, "long_mscale": 1.3}, length=8192).attention_factor == 1.3


def test_longrope_is_refused_for_interleaved_pairs():
    lists = {"rope_type": "longrope", "short_factor": [1.0] * 32, "long_factor": [2.0] * 32}
    with pytest.raises(rw.InputError, match="does not support interleaved pairs"):
        vllm_frequencies({**lists, "original_max_position_embeddings": 4096}, model_type="glm4")


@pytest.mark.parametrize(
    ("rope", "length", "message"),
    [
        ({"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 8192}, 32_768, "at least 32,768"),
        ({"rope_type": "yarn", "factor": 1.5, "original_max_position_embeddings": 4096}, 8192, "at most 6,144"),
        ({"rope_type": "linear", "factor": 2.0}, 16_385, "at least 8,192"),
        ({"rope_type": "proportional", "partial_rotary_factor": 0.5}, 8193, "at least 8,193"),
        ({"rope_type": "linear", "factor": None}, 8192, "a value"),
        ({"type": "linear", "rope_type": "yarn", "factor": 2.0}, 8192, "one of the two"),
        (
            {"rope_type": "linear", "factor": 2.0, "mrope_section": [8, 12, 12]},
            8192,
            "the other types ignore mrope_section",
        ),
        (
            {"rope_type": "ntk", "factor": 2.0, "mrope_section": [8, 12, 12]},
            8192,
            "the other types ignore mrope_section",
        ),
    ],
)
def test_an_unservable_configuration_is_refused(rope, length, message):
    with pytest.raises(rw.InputError, match=message):
        vllm_frequencies(rope, length=length)


def test_a_linear_export_keeps_max_position_embeddings():
    """vLLM multiplies max_position_embeddings by the factor of linear, so the field must stay the original length."""
    rope = {"rope_theta": 100_000.0, "rope_type": "linear", "factor": 2.0}
    assert VLLM.interpret({**PLAIN, "rope_parameters": rope}, 8192).max_length == 16_384
    candidate = encode(VLLM, PLAIN, interpret_as_trained(PLAIN), rw.Linear(2), 16_384)
    assert "max_position_embeddings" not in candidate.changes


def test_overrides_contain_the_base():
    """An override replaces the complete rope_parameters; without rope_theta in it, vLLM uses 10,000."""
    candidate = encode(VLLM, PLAIN, interpret_as_trained(PLAIN), rw.YaRN(4), 32_768)
    words = shlex.split(VLLM.build_command("some/model", 32_768, candidate.changes))
    assert words[:5] == ["vllm", "serve", "some/model", "--max-model-len", "32768"]
    given = json.loads(words[words.index("--hf-overrides") + 1])
    assert given["rope_parameters"]["rope_theta"] == 100_000.0
    assert given["max_position_embeddings"] == 32_768


def test_overrides_of_a_composite_model_are_nested_in_its_text_part():
    config = {"model_type": "some_vl", "text_config": PLAIN}
    candidate = encode(VLLM, config, interpret_as_trained(config), rw.YaRN(4), 32_768)
    assert set(candidate.changes) == {"text_config"}
    assert candidate.config["text_config"]["rope_parameters"]["factor"] == 4


def test_a_low_tokenizer_limit_is_overridden_by_an_environment_variable(tmp_path):
    (tmp_path / "tokenizer_config.json").write_text('{"model_max_length": 8192}')
    assert VLLM.build_command(str(tmp_path), 32_768, {}).startswith("VLLM_ALLOW_LONG_MAX_MODEL_LEN=1 vllm serve")
    assert VLLM.build_command(str(tmp_path), 8192, {}).startswith("vllm serve")


@pytest.mark.parametrize("text_config", [None, 2, "yarn"])
def test_a_composite_configuration_without_a_text_part_has_the_defaults_of_its_class(text_config):
    rope = VLLM.interpret({"model_type": "mistral3", "text_config": text_config}, 4096).main_layer.rope
    assert (rope.dim, rope.base, rope.original_length) == (128, 10_000.0, 131_072)


class TestRequestFactors:
    """The rope dict of the plugin (serving/vllm_plugin); tests/serving/vllm_plugin runs it on vLLM."""

    def encode(self, **changes):
        config = {**PLAIN, **changes}
        return encode(VLLM, config, interpret_as_trained(config), rw.parse("dynamic-yarn:beta_fast=16"), 30_000)

    def test_dynamic_yarn_is_written_with_the_powers_of_two_up_to_the_length(self):
        candidate = self.encode()
        assert candidate.encoded_as == "request factors"
        assert candidate.changes["max_position_embeddings"] == 30_000
        assert candidate.changes["rope_parameters"] == {
            "rope_theta": 100_000.0,
            "rope_type": "ropewalk_dynamic_yarn",
            "original_max_position_embeddings": 8192,
            "factors": [1, 2, 4],
            "beta_fast": 16.0,
            "beta_slow": 1.0,
            "truncate": True,
        }
        assert VLLM.interpret(candidate.config, 30_000).main_layer.scaling == rw.parse("dynamic-yarn:beta_fast=16")
        assert "smallest factor of 1, 2, 4" in VLLM.describe_dynamic(candidate.config)

    def test_longer_texts_than_the_largest_factor_covers_are_refused(self):
        config = self.encode().config
        with pytest.raises(rw.InputError, match="at most 32,768, the positions in its table"):
            VLLM.interpret({**config, "max_position_embeddings": 40_000}, 40_000)

    @pytest.mark.parametrize(
        "changes",
        [
            {"rope_scaling": {"rope_type": "default", "mrope_section": [8, 12, 12]}},
            {"model_type": "deepseek_v3", "qk_rope_head_dim": 64, "kv_lora_rank": 128},
        ],
        ids=["MRoPE", "MLA"],
    )
    def test_models_that_the_plugin_does_not_support_are_refused(self, changes):
        with pytest.raises(UnsupportedScalingError, match="dynamic-yarn"):
            self.encode(**changes)
