"""The frequencies that each engine computes from a configuration, against values worked out by hand.

The candidates that are encoded for an engine are checked against the same interpretation.
"""

from __future__ import annotations

import json
import math
import shlex

import numpy as np
import pytest

from ropewalk import config as configs
from ropewalk.config.scaled_fields import frequencies_match
from ropewalk.errors import InputError, UnsupportedScalingError
from ropewalk.scaling import REGISTRY, parse
from ropewalk.serving.engines import find_engine
from ropewalk.serving.engines.base import EngineConfigError
from ropewalk.serving.engines.encode import encode
from ropewalk.serving.engines.trained_config import interpret_as_trained

ENGINES = ("transformers4", "sglang", "tensorrt-llm", "mlx-lm", "exllamav2", "exllamav3", "tgi", "lmdeploy")
YARN_2 = {"rope_type": "yarn", "factor": 2.0, "original_max_position_embeddings": 8192}
DYNAMIC_2 = {"rope_type": "dynamic", "factor": 2.0}
DEFAULT_ATTENTION_FACTOR_2 = 0.1 * math.log(2) + 1  # of YaRN with factor 2
SHORT, LONG = [1 + i / 64 for i in range(32)], [1 + i / 8 for i in range(32)]
LISTS = {"rope_type": "longrope", "short_factor": SHORT, "long_factor": LONG}
# One spec for each method, and the number of engines above that support it.
SPECS = {
    "none": ("none", 8),
    "linear": ("linear:factor=2", 8),
    "ntk": ("ntk:factor=2", 8),
    "dynamic-ntk": ("dynamic-ntk:factor=2", 3),
    "ntk-by-parts": ("ntk-by-parts:factor=2", 8),
    "dynamic-ntk-by-parts": ("dynamic-ntk-by-parts", 0),
    "yarn": ("yarn:factor=2,attention_factor=1.25", 8),
    "dynamic-yarn": ("dynamic-yarn", 0),
    "mrrope-uni": ("mrrope-uni:factor=2", 7),
    "mrrope-pro": ("mrrope-pro:factor=2", 7),
    "cope": ("cope:factor=2", 7),
    "llama3": ("llama3:factor=4", 8),
    "longrope": (json.dumps({"name": "longrope", "factor": 2, "short_factor": SHORT, "long_factor": LONG}), 6),
    "learned": (json.dumps({"name": "learned", "divisors": LONG, "attention_factor": 1.1, "target": 16_384}), 7),
    "abf": ("abf:base=1000000", 8),
    "critical-base": ("critical-base:factor=2", 8),
    "proportional": ("proportional:p=0.5", 1),
    "power-ntk": ("power-ntk", 0),
    "log-ntk": ("log-ntk", 0),
}


def llama(**fields):
    """A Llama of 8,192 tokens, base 100,000, with 64 rotary dimensions."""
    defaults = {
        "model_type": "llama",
        "hidden_size": 576,
        "num_attention_heads": 9,
        "num_hidden_layers": 2,
        "max_position_embeddings": 8192,
        "rope_theta": 100_000.0,
    }
    return {key: value for key, value in {**defaults, **fields}.items() if value is not None}


def llama_with(rope_scaling, **fields):
    return llama(rope_scaling=rope_scaling, **fields)


def engine_frequencies(engine, config, length=12_000):
    """Return the frequencies of the main layers as the engine computes them."""
    model_config = find_engine(engine).interpret(config, length)
    layer = model_config.main_layer
    return configs.compute_layer_frequencies(layer.scaling, layer, length)


def unscaled_inv_freq(base, dim=64):
    return base ** (-np.arange(0, dim, 2) / dim)


def yarn_inv_freq(factor, low, high, base=100_000.0, dim=64):
    """Return YaRN's inverse frequencies with a ramp between two given indices."""
    blend = np.clip((np.arange(dim // 2) - low) / (high - low), 0, 1)
    return unscaled_inv_freq(base, dim) * (1 - blend + blend / factor)


@pytest.mark.parametrize("method", sorted(REGISTRY))
def test_a_method_is_encoded_for_engines_that_support_it_and_refused_in_one_line_for_others(method):
    spec, expected = SPECS[method]
    supported, refusals = [], []
    for engine in ENGINES:
        try:
            encode(find_engine(engine), llama(), interpret_as_trained(llama()), parse(spec), 16_384)
            supported.append(engine)
        except UnsupportedScalingError as error:
            refusals.append(error)
    assert len(supported) == expected, supported
    assert all(error.nearest and error.nearest in str(error) and "\n" not in str(error) for error in refusals), refusals


@pytest.mark.parametrize("engine", ENGINES)
def test_an_unscaled_model_keeps_its_base(engine):
    np.testing.assert_allclose(engine_frequencies(engine, llama(), 8192).inv_freq, unscaled_inv_freq(100_000.0))


@pytest.mark.parametrize("engine", ENGINES)
def test_llama3_has_the_same_frequencies_in_every_engine(engine):
    rope_dict = {
        "rope_type": "llama3",
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    }
    got = engine_frequencies(
        engine, llama_with(rope_dict, max_position_embeddings=65_536, rope_theta=500_000.0)
    ).inv_freq
    plain = unscaled_inv_freq(500_000.0)
    rotations = 8192 * plain / (2 * math.pi)
    np.testing.assert_allclose(got[rotations >= 4], plain[rotations >= 4])
    np.testing.assert_allclose(got[rotations <= 1], plain[rotations <= 1] / 8)
    between = (rotations > 1) & (rotations < 4)
    weight = (rotations[between] - 1) / 3
    np.testing.assert_allclose(got[between], plain[between] * (weight + (1 - weight) / 8))


class TestBaseInRopeParameters:
    """transformers 5 writes rope_theta inside rope_parameters."""

    config = llama(rope_theta=None, rope_parameters={"rope_type": "default", "rope_theta": 500_000.0})

    @pytest.mark.parametrize("engine", ["transformers4", "mlx-lm", "exllamav2", "tgi"])
    def test_is_lost_in_engines_that_only_read_rope_theta(self, engine):
        np.testing.assert_allclose(engine_frequencies(engine, self.config, 8192).inv_freq, unscaled_inv_freq(10_000.0))

    @pytest.mark.parametrize("engine", ["sglang", "tensorrt-llm", "exllamav3", "lmdeploy"])
    def test_is_read_by_the_other_engines(self, engine):
        np.testing.assert_allclose(engine_frequencies(engine, self.config, 8192).inv_freq, unscaled_inv_freq(500_000.0))

    @pytest.mark.parametrize("engine", ENGINES)
    def test_is_kept_by_an_encoded_configuration(self, engine):
        candidate = encode(find_engine(engine), self.config, interpret_as_trained(self.config), parse("none"), 8192)
        np.testing.assert_allclose(
            engine_frequencies(engine, candidate.config, 8192).inv_freq, unscaled_inv_freq(500_000.0)
        )

    @pytest.mark.parametrize(
        ("engine", "model_type", "base"),
        [
            ("mlx-lm", "qwen3", 500_000.0),  # reads rope_parameters
            ("mlx-lm", "qwen2", 1_000_000.0),
            ("mlx-lm", "cohere", 8_000_000.0),
            ("exllamav2", "qwen2", 10_000.0),
            ("exllamav2", "mixtral", 10_000.0),
            ("transformers4", "olmo3", 10_000.0),
            ("transformers4", "mixtral", 1_000_000.0),
        ],
    )
    def test_is_replaced_by_the_default_of_the_engine(self, engine, model_type, base):
        np.testing.assert_allclose(
            engine_frequencies(engine, {**self.config, "model_type": model_type, "head_dim": 64}, 8192).inv_freq,
            unscaled_inv_freq(base),
        )

    def test_is_required_outside_the_dict_by_some_architectures_of_mlx(self):
        with pytest.raises(InputError, match="MLX-LM: rope_theta: got None"):
            engine_frequencies("mlx-lm", {**self.config, "model_type": "granite"}, 8192)


class TestAttentionFactor:
    config = llama_with({**YARN_2, "attention_factor": 1.5}, max_position_embeddings=16_384)

    @pytest.mark.parametrize("engine", ["sglang", "tensorrt-llm", "mlx-lm", "tgi"])
    def test_of_yarn_is_ignored(self, engine):
        assert engine_frequencies(engine, self.config).attention_factor == pytest.approx(DEFAULT_ATTENTION_FACTOR_2)

    @pytest.mark.parametrize("engine", ["transformers4", "exllamav3", "lmdeploy"])
    def test_of_yarn_is_read(self, engine):
        assert engine_frequencies(engine, self.config).attention_factor == 1.5

    @pytest.mark.parametrize("engine", ["sglang", "tensorrt-llm", "mlx-lm", "exllamav2", "exllamav3"])
    def test_of_longrope_is_derived_from_the_two_lengths(self, engine):
        rope_dict = {**LISTS, "attention_factor": 1.5, "original_max_position_embeddings": 4096}
        config = llama_with(rope_dict, max_position_embeddings=16_384, original_max_position_embeddings=4096)
        # ln 4 / ln 4096 is one sixth
        assert engine_frequencies(engine, config).attention_factor == pytest.approx(math.sqrt(1 + 1 / 6))
        assert engine_frequencies("transformers4", config).attention_factor == 1.5

    def test_sglang_reads_attn_factor_of_yarn_and_the_mscales_of_longrope(self):
        config = llama_with({**YARN_2, "attn_factor": 1.5}, max_position_embeddings=16_384)
        assert engine_frequencies("sglang", config).attention_factor == pytest.approx(1.5 * DEFAULT_ATTENTION_FACTOR_2)
        rope_dict = {**LISTS, "original_max_position_embeddings": 8192, "short_mscale": 1.1, "long_mscale": 1.25}
        config = llama_with(rope_dict, max_position_embeddings=16_384)
        assert engine_frequencies("sglang", config, 8000).attention_factor == 1.1
        assert engine_frequencies("sglang", config, 12_000).attention_factor == 1.25

    @pytest.mark.parametrize("engine", ["mlx-lm", "tensorrt-llm", "tgi"])
    def test_a_single_mscale_is_used(self, engine):
        config = llama_with({**YARN_2, "mscale": 0.5}, max_position_embeddings=16_384)
        assert engine_frequencies(engine, config).attention_factor == pytest.approx(1 + 0.05 * math.log(2))
        assert engine_frequencies("transformers4", config).attention_factor == pytest.approx(DEFAULT_ATTENTION_FACTOR_2)


class TestYarnRamp:
    # The ramp begins at index 64 ln(8192 / (2 pi 32)) / (2 ln 100000) = 10.3 and ends, with 1 in place of 32, at 19.9.
    # For 16,384 tokens the two are 12.2 and 21.9.

    @pytest.mark.parametrize("engine", ["transformers4", "sglang", "tensorrt-llm", "mlx-lm", "exllamav3", "tgi"])
    def test_is_computed_for_the_original_length(self, engine):
        got = engine_frequencies(engine, llama_with(YARN_2, max_position_embeddings=16_384))
        np.testing.assert_allclose(got.inv_freq, yarn_inv_freq(2, 10, 20))

    @pytest.mark.parametrize("engine", ["exllamav2", "lmdeploy"])
    def test_is_computed_for_the_declared_length(self, engine):
        got = engine_frequencies(engine, llama_with(YARN_2, max_position_embeddings=16_384))
        np.testing.assert_allclose(got.inv_freq, yarn_inv_freq(2, 12, 22))

    def test_is_computed_for_the_original_length_by_the_pytorch_backend_of_lmdeploy(self):
        config = llama_with(YARN_2, max_position_embeddings=16_384, model_type="mistral")
        np.testing.assert_allclose(engine_frequencies("lmdeploy", config).inv_freq, yarn_inv_freq(2, 10, 20))

    @pytest.mark.parametrize("engine", ["tgi", "exllamav2"])
    def test_betas_are_ignored(self, engine):
        plain = llama_with(YARN_2, max_position_embeddings=16_384)
        with_betas = llama_with({**YARN_2, "beta_fast": 8.0, "beta_slow": 4.0}, max_position_embeddings=16_384)
        assert frequencies_match(engine_frequencies(engine, with_betas), engine_frequencies(engine, plain))

    @pytest.mark.parametrize("engine", ["tensorrt-llm", "mlx-lm", "tgi"])
    def test_truncate_is_ignored(self, engine):
        not_truncated = llama_with({**YARN_2, "truncate": False}, max_position_embeddings=16_384)
        np.testing.assert_allclose(engine_frequencies(engine, not_truncated).inv_freq, yarn_inv_freq(2, 10, 20))

    def test_mlx_uses_4096_for_a_missing_original_length(self):
        # 64 ln(4096 / (2 pi 32)) / (2 ln 100000) is 8.4; with 1 it is 18.01
        got = engine_frequencies("mlx-lm", llama_with({"rope_type": "yarn", "factor": 2.0}))
        np.testing.assert_allclose(got.inv_freq, yarn_inv_freq(2, 8, 19))


class TestYarnFactor:
    four = llama_with({**YARN_2, "factor": 4.0}, max_position_embeddings=16_384)

    @pytest.mark.parametrize("engine", ["exllamav3", "lmdeploy"])
    def test_is_the_declared_over_the_original_length(self, engine):
        assert engine_frequencies(engine, self.four).inv_freq[-1] == pytest.approx(unscaled_inv_freq(100_000.0)[-1] / 2)

    @pytest.mark.parametrize("engine", ["transformers4", "sglang", "tensorrt-llm", "mlx-lm", "tgi"])
    def test_is_the_factor_of_the_dict(self, engine):
        assert engine_frequencies(engine, self.four).inv_freq[-1] == pytest.approx(unscaled_inv_freq(100_000.0)[-1] / 4)

    @pytest.mark.parametrize("engine", ["exllamav2", "exllamav3", "lmdeploy"])
    def test_a_yarn_dict_without_a_longer_declared_length_scales_nothing(self, engine):
        np.testing.assert_allclose(
            engine_frequencies(engine, llama_with(YARN_2), 8192).inv_freq, unscaled_inv_freq(100_000.0)
        )


class TestIgnoredTypes:
    @pytest.mark.parametrize("rope_type", ["dynamic", "ntk", "proportional", "nonsense"])
    def test_exllamav2_ignores_types_that_it_does_not_have(self, rope_type):
        got = engine_frequencies("exllamav2", llama_with({"rope_type": rope_type, "factor": 2.0}), 8192)
        np.testing.assert_allclose(got.inv_freq, unscaled_inv_freq(100_000.0))

    def test_tgi_ignores_linear(self):
        np.testing.assert_allclose(
            engine_frequencies("tgi", llama_with({"type": "linear", "factor": 2.0})).inv_freq,
            unscaled_inv_freq(100_000.0),
        )

    def test_tensorrt_llm_ignores_dynamic_without_alpha(self):
        config = llama_with({"type": "dynamic", "factor": 2.0}, max_position_embeddings=16_384)
        np.testing.assert_allclose(engine_frequencies("tensorrt-llm", config).inv_freq, unscaled_inv_freq(100_000.0))
        config = llama_with({"type": "dynamic", "alpha": 4.0}, max_position_embeddings=16_384)
        np.testing.assert_allclose(
            engine_frequencies("tensorrt-llm", config).inv_freq, unscaled_inv_freq(100_000.0 * 4 ** (64 / 62))
        )

    def test_sglang_ignores_proportional_outside_of_gemma_4(self):
        rope_dict = {"rope_type": "proportional", "partial_rotary_factor": 0.5}
        got = engine_frequencies(
            "sglang", llama(rope_theta=None, rope_parameters={**rope_dict, "rope_theta": 100_000.0}), 8192
        )
        np.testing.assert_allclose(got.inv_freq, unscaled_inv_freq(100_000.0))

    def test_mlx_serves_phi_3_unscaled_for_types_that_it_does_not_have(self):
        rope_dict = {"type": "yarn", "factor": 2.0, "long_factor": LONG}
        got = engine_frequencies("mlx-lm", llama_with(rope_dict, model_type="phi3"), 8192)
        np.testing.assert_allclose(got.inv_freq, unscaled_inv_freq(100_000.0))


@pytest.mark.parametrize(
    ("engine", "config", "field"),
    [
        ("transformers4", llama_with({"rope_type": "proportional", "factor": 1.0}), "rope_scaling type"),
        ("transformers4", llama_with({"rope_type": "yarn"}), "factor"),
        ("transformers4", llama_with({**YARN_2, "type": "yarn"}, model_type="phi3"), "rope_scaling"),
        ("sglang", llama_with({"rope_type": "ntk", "factor": 2.0}, max_position_embeddings=16_384), "rope_type"),
        ("sglang", llama(), "max_position_embeddings"),
        ("tensorrt-llm", llama_with({"type": "proportional"}, max_position_embeddings=16_384), "rope_scaling type"),
        ("tensorrt-llm", llama_with({"type": "linear", "factor": 2.0}), "max_position_embeddings"),
        ("mlx-lm", llama_with({**LISTS, "rope_type": "su"}), "rope_scaling type"),
        ("mlx-lm", llama_with({"type": "longrope", "long_factor": LONG}, model_type="phi3"), "short_factor"),
        ("exllamav2", llama_with({**YARN_2, "type": "yarn"}, max_position_embeddings=16_384), "rope_scaling"),
        ("exllamav2", llama_with(LISTS, max_position_embeddings=16_384), "original_max_position_embeddings"),
        ("exllamav2", llama(), "max_position_embeddings"),
        ("exllamav3", llama_with({"rope_type": "dynamic", "factor": 2.0}), "rope_type"),
        ("exllamav3", llama_with({**YARN_2, "original_max_position_embeddings": 65_536}), "max_position_embeddings"),
        ("tgi", llama_with({"rope_type": "yarn", "factor": 2.0}), "original_max_position_embeddings"),
        ("tgi", llama_with(LISTS, original_max_position_embeddings=4096), "short_factor and long_factor"),
        ("lmdeploy", llama_with(LISTS), "rope_type"),
    ],
)
def test_an_error_names_the_engine_and_the_field(engine, config, field):
    with pytest.raises(EngineConfigError) as caught:
        find_engine(engine).interpret(config, 12_000)
    assert str(caught.value).startswith(f"{find_engine(engine).title}: {field}: got ")
    assert "\n" not in str(caught.value)
    assert (caught.value.engine, caught.value.key) == (find_engine(engine).title, field)


class TestDynamic:
    def test_sglang_fixes_its_table_at_factor_times_the_declared_length(self):
        # 2 x 2 - 1
        for length in (1000, 12_000):
            got = engine_frequencies("sglang", llama_with(DYNAMIC_2), length).inv_freq
            np.testing.assert_allclose(got, unscaled_inv_freq(100_000.0 * 3 ** (64 / 62)))

    def test_tgi_fixes_its_table_at_the_length_that_it_serves(self):
        got = engine_frequencies("tgi", llama_with(DYNAMIC_2), 16_384).inv_freq
        np.testing.assert_allclose(got, unscaled_inv_freq(100_000.0 * 3 ** (64 / 62)))
        np.testing.assert_allclose(
            engine_frequencies("tgi", llama_with(DYNAMIC_2), 8192).inv_freq, unscaled_inv_freq(100_000.0)
        )

    @pytest.mark.parametrize("engine", ["transformers4", "mlx-lm", "lmdeploy"])
    def test_other_engines_follow_the_length_of_the_text(self, engine):
        for length, length_ratio in ((8000, 1), (12_288, 2), (16_384, 3)):
            got = engine_frequencies(engine, llama_with(DYNAMIC_2), length).inv_freq
            np.testing.assert_allclose(got, unscaled_inv_freq(100_000.0 * length_ratio ** (64 / 62)))

    def test_alpha_is_read_by_sglang_and_ignored_by_transformers_4(self):
        config = llama_with({**DYNAMIC_2, "alpha": 4.0})
        np.testing.assert_allclose(
            engine_frequencies("sglang", config).inv_freq, unscaled_inv_freq(100_000.0 * 4 ** (64 / 62))
        )
        np.testing.assert_allclose(
            engine_frequencies("transformers4", config, 8192).inv_freq, unscaled_inv_freq(100_000.0)
        )


class TestLongRopeLists:
    def test_engines_choose_the_list_by_text_length_or_always_serve_the_long_one(self):
        fields = {"max_position_embeddings": 16_384, "original_max_position_embeddings": 8192}
        config = llama_with({**LISTS, "original_max_position_embeddings": 8192}, **fields)
        plain = unscaled_inv_freq(100_000.0)
        for engine, at_4k, at_12k in (
            ("transformers4", SHORT, LONG),
            ("sglang", SHORT, LONG),
            ("tensorrt-llm", SHORT, LONG),
            ("mlx-lm", LONG, LONG),
            ("exllamav2", LONG, LONG),
            ("exllamav3", LONG, LONG),
        ):
            np.testing.assert_allclose(engine_frequencies(engine, config, 4096).inv_freq, plain / at_4k)
            np.testing.assert_allclose(engine_frequencies(engine, config, 12_000).inv_freq, plain / at_12k)

    def test_transformers_4_reads_the_original_length_only_outside_the_dict(self):
        config = llama_with({**LISTS, "factor": 2.0, "original_max_position_embeddings": 4096})
        np.testing.assert_allclose(
            engine_frequencies("transformers4", config, 8000).inv_freq, unscaled_inv_freq(100_000.0) / SHORT
        )

    def test_tgi_multiplies_the_angles_by_the_mscales(self):
        rope_dict = {**LISTS, "long_factor": SHORT, "short_mscale": 1.5, "long_mscale": 1.5}
        got = engine_frequencies("tgi", llama_with(rope_dict, original_max_position_embeddings=4096))
        np.testing.assert_allclose(got.inv_freq, unscaled_inv_freq(100_000.0) / SHORT * 1.5)
        assert got.attention_factor == 1


PHI_3 = {
    "model_type": "phi3",
    "hidden_size": 2048,
    "num_attention_heads": 32,
    "num_hidden_layers": 2,
    "max_position_embeddings": 131_072,
    "original_max_position_embeddings": 4096,
    "rope_theta": 10_000.0,
    "rope_scaling": {"type": "longrope", "short_factor": SHORT, "long_factor": LONG},
}
GEMMA_3 = {
    "model_type": "gemma3",
    "text_config": {
        "model_type": "gemma3_text",
        "hidden_size": 2560,
        "num_attention_heads": 8,
        "head_dim": 256,
        "num_hidden_layers": 6,
        "max_position_embeddings": 131_072,
        "rope_theta": 1_000_000.0,
        "rope_local_base_freq": 10_000.0,
        "rope_scaling": {"rope_type": "linear", "factor": 8.0},
        "sliding_window": 1024,
    },
}
GPT_OSS = {
    "model_type": "gpt_oss",
    "hidden_size": 2880,
    "num_attention_heads": 64,
    "head_dim": 64,
    "num_hidden_layers": 2,
    "max_position_embeddings": 131_072,
    "rope_theta": 150_000.0,
    "rope_scaling": {
        "rope_type": "yarn",
        "factor": 32.0,
        "beta_fast": 32.0,
        "beta_slow": 1.0,
        "truncate": False,
        "original_max_position_embeddings": 4096,
    },
}
DEEPSEEK = {
    "model_type": "deepseek_v3",
    "hidden_size": 7168,
    "num_attention_heads": 128,
    "num_hidden_layers": 2,
    "qk_rope_head_dim": 64,
    "kv_lora_rank": 512,
    "max_position_embeddings": 163_840,
    "rope_theta": 10_000.0,
    "rope_scaling": {
        "type": "yarn",
        "factor": 40,
        "beta_fast": 32,
        "beta_slow": 1,
        "mscale": 1.0,
        "mscale_all_dim": 1.0,
        "original_max_position_embeddings": 4096,
    },
}


class TestFamilies:
    @pytest.mark.parametrize("engine", [engine for engine in ENGINES if engine != "tgi"])
    def test_the_attention_factor_of_phi_3_follows_from_its_two_lengths(self, engine):
        # sqrt(1 + ln 32 / ln 4096) is sqrt(17/12)
        assert engine_frequencies(engine, PHI_3).attention_factor == pytest.approx(math.sqrt(17 / 12))
        np.testing.assert_allclose(engine_frequencies(engine, PHI_3).inv_freq, unscaled_inv_freq(10_000.0) / LONG)

    @pytest.mark.parametrize("method", ["linear:factor=2", "yarn:factor=2", "llama3:factor=2", "ntk-by-parts:factor=2"])
    @pytest.mark.parametrize("engine", ["transformers4", "tensorrt-llm", "tgi"])
    def test_phi_3_is_written_with_exactly_three_fields_for_transformers_4(self, engine, method):
        candidate = encode(find_engine(engine), PHI_3, interpret_as_trained(PHI_3), parse(method), 8192)
        assert candidate.config["rope_scaling"].keys() == {"type", "short_factor", "long_factor"}
        assert candidate.config["rope_scaling"]["type"] == "longrope"

    @pytest.mark.parametrize("rope_type", ["yarn", "linear", "llama3"])
    @pytest.mark.parametrize("engine", ["transformers4", "tensorrt-llm", "tgi", "sglang", "lmdeploy"])
    def test_the_class_of_phi_3_refuses_every_type_without_lists(self, engine, rope_type):
        rope_dict = {"rope_type": rope_type, "factor": 2.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
        config = {**PHI_3, "rope_scaling": rope_dict}
        with pytest.raises(InputError, match=rf"{find_engine(engine).title}: rope_\w+: got .* class of phi3"):
            find_engine(engine).interpret(config, 8192)

    @pytest.mark.parametrize("engine", ENGINES)
    def test_gemma_3_is_written_with_its_local_base_and_its_factor(self, engine):
        candidate = encode(
            find_engine(engine), GEMMA_3, interpret_as_trained(GEMMA_3), parse("linear:factor=8"), 131_072
        )
        text = candidate.config["text_config"]
        if find_engine(engine).reads_rope_parameters:
            assert text["rope_parameters"] == {
                "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1_000_000.0},
                "sliding_attention": {"rope_type": "default", "rope_theta": 10_000.0},
            }
        else:
            assert (text["rope_theta"], text["rope_local_base_freq"]) == (1_000_000.0, 10_000.0)
            rope_dict = text["rope_scaling"]
            assert rope_dict.get("factor") == 8.0 or set(rope_dict["long_factor"]) == {8.0}
        assert text["hidden_size"] == 2560
        assert "rope_scaling" not in candidate.config

    @pytest.mark.parametrize("engine", ENGINES)
    def test_sliding_layers_of_gemma_3_keep_the_local_base(self, engine):
        local = find_engine(engine).interpret(GEMMA_3, 8192).ropes["sliding_attention"]
        np.testing.assert_allclose(local.scaling.frequencies(local.rope).inv_freq, unscaled_inv_freq(10_000.0, 256))

    def test_for_gemma_3_tgi_ignores_the_scaling_and_lmdeploy_requires_a_factor(self):
        np.testing.assert_allclose(engine_frequencies("tgi", GEMMA_3).inv_freq, unscaled_inv_freq(1_000_000.0, 256))
        text = {key: value for key, value in GEMMA_3["text_config"].items() if key != "rope_scaling"}
        with pytest.raises(InputError, match="LMDeploy: factor"):
            find_engine("lmdeploy").interpret({"text_config": text}, 8192)

    @pytest.mark.parametrize("engine", [engine for engine in ENGINES if engine != "exllamav2"])
    def test_the_softmax_factor_of_deepseek_is_used(self, engine):
        got = engine_frequencies(engine, DEEPSEEK)
        assert got.attention_factor == pytest.approx(1)
        assert got.softmax_factor == pytest.approx((0.1 * math.log(40) + 1) ** 2)

    def test_sglang_interprets_any_scaling_of_deepseek_as_yarn(self):
        linear = {**DEEPSEEK, "rope_scaling": {"rope_type": "linear", "factor": 4.0}}
        got = engine_frequencies("sglang", linear)
        # 64 ln(163840 / (2 pi 32)) / (2 ln 10000) is 23.3; with 1 it is 35.3
        np.testing.assert_allclose(got.inv_freq, yarn_inv_freq(4, 23, 36, 10_000.0))

    @pytest.mark.parametrize("engine", ["tensorrt-llm", "mlx-lm", "tgi"])
    def test_the_ramp_of_gpt_oss_is_truncated_to_integer_indices(self, engine):
        # 64 ln(4096 / (2 pi 32)) / (2 ln 150000) is 8.1; with 1 it is 17.4
        np.testing.assert_allclose(engine_frequencies(engine, GPT_OSS).inv_freq, yarn_inv_freq(32, 8, 18, 150_000.0))
        assert not frequencies_match(engine_frequencies(engine, GPT_OSS), engine_frequencies("transformers4", GPT_OSS))

    def test_transformers_4_scales_gpt_oss_by_default(self):
        bare = {key: value for key, value in GPT_OSS.items() if key != "rope_scaling"}
        assert frequencies_match(
            engine_frequencies("transformers4", bare), engine_frequencies("transformers4", GPT_OSS)
        )
        candidate = encode(find_engine("transformers4"), GPT_OSS, interpret_as_trained(GPT_OSS), parse("none"), 4096)
        np.testing.assert_allclose(
            engine_frequencies("transformers4", candidate.config, 4096).inv_freq, unscaled_inv_freq(150_000.0)
        )

    def test_sglang_reads_mrope_section_only_with_default_and_yarn(self):
        for rope_type in ("linear", "llama3", "dynamic", "longrope"):
            with pytest.raises(InputError, match="the other types ignore mrope_section"):
                engine_frequencies(
                    "sglang",
                    llama_with({**LISTS, **YARN_2, "rope_type": rope_type, "mrope_section": [8, 12, 12]}),
                    8192,
                )

    def test_sglang_refuses_longrope_for_interleaved_pairs(self):
        config = llama_with({**LISTS, "original_max_position_embeddings": 4096}, model_type="glm4")
        with pytest.raises(InputError, match="does not support interleaved pairs"):
            engine_frequencies("sglang", config, 8192)

    def test_partial_rotary_factor_is_kept(self):
        config = llama(rope_theta=None, rope_parameters={"rope_theta": 100_000.0, "partial_rotary_factor": 0.5})
        for engine in ENGINES:
            candidate = encode(
                find_engine(engine), config, interpret_as_trained(config), parse("linear:factor=2"), 16_384
            )
            got = find_engine(engine).interpret(candidate.config, 16_384)
            assert got.ropes["all"].rope.dim == 32

    def test_mrope_section_is_kept(self):
        rope_dict = {"type": "mrope", "mrope_section": [8, 12, 12]}
        for engine in ENGINES:
            config = llama_with(rope_dict, max_position_embeddings=16_384)
            candidate = encode(find_engine(engine), config, interpret_as_trained(config), parse("ntk:factor=2"), 16_384)
            written = candidate.config.get("rope_parameters") or candidate.config["rope_scaling"]
            assert written["mrope_section"] == [8, 12, 12]


class TestMergedOverrides:
    """Where command-line overrides are merged into the model's rope dict, keys that only it has remain."""

    config = llama_with({**YARN_2, "factor": 4.0, "mscale": 1.0, "mscale_all_dim": 1.0}, max_position_embeddings=32_768)

    @pytest.mark.parametrize("engine", ["sglang", "lmdeploy"])
    @pytest.mark.parametrize("method", ["yarn:factor=2", "linear:factor=2", "none"])
    def test_remaining_keys_do_not_change_the_frequencies(self, engine, method):
        expected = parse(method).frequencies(configs.from_dict(self.config).main_layer.rope)
        candidate = encode(find_engine(engine), self.config, interpret_as_trained(self.config), parse(method), 8192)
        old = {"rope_theta": 100_000.0, **self.config["rope_scaling"]}
        fields = {
            **self.config,
            **candidate.changes,
            "rope_parameters": {**old, **candidate.changes["rope_parameters"]},
        }
        got = engine_frequencies(engine, {key: value for key, value in fields.items() if value is not None}, 8192)
        np.testing.assert_allclose(got.inv_freq, expected.inv_freq)
        assert got.attention_factor == pytest.approx(expected.attention_factor)

    def test_a_written_folder_has_none_of_the_old_keys(self):
        candidate = encode(find_engine("sglang"), self.config, interpret_as_trained(self.config), parse("none"), 8192)
        assert candidate.config["rope_parameters"] == {"rope_theta": 100_000.0, "rope_type": "default"}

    @pytest.mark.parametrize(("engine", "flat", "nested"), [
        ("vllm", False, True), ("sglang", True, False), ("lmdeploy", True, True), ("tgi", False, False),
    ])  # fmt: skip
    def test_vllm_merges_only_in_a_text_config_and_sglang_only_outside_of_one(self, engine, flat, nested):
        chosen = find_engine(engine)
        assert (chosen.merges_overrides(llama()), chosen.merges_overrides({"text_config": llama()})) == (flat, nested)

    def test_an_old_attention_factor_in_a_text_config_does_not_survive_in_vllm(self):
        old = {**YARN_2, "rope_theta": 100_000.0, "attention_factor": 1.0}
        config = {"model_type": "some_vl", "text_config": llama(rope_theta=None, rope_parameters=old)}
        candidate = encode(find_engine("vllm"), config, interpret_as_trained(config), parse("yarn:factor=4"), 32_768)
        merged = {**old, **candidate.changes["text_config"]["rope_parameters"]}
        assert merged["attention_factor"] == pytest.approx(0.1 * math.log(4) + 1)

    def test_a_command_contains_no_null_that_would_erase_the_new_rope_dict(self, tmp_path):
        text = llama(rope_scaling=YARN_2, rope_parameters={**YARN_2, "rope_theta": 100_000.0})
        config = {"model_type": "some_vl", "text_config": text}
        (tmp_path / "config.json").write_text(json.dumps(config))
        chosen = find_engine("vllm")
        candidate = encode(chosen, config, interpret_as_trained(config), parse("yarn:factor=4"), 32_768)
        assert candidate.changes["text_config"]["rope_scaling"] is None
        command = shlex.split(chosen.build_command(str(tmp_path), 32_768, candidate.changes))
        overrides = json.loads(command[command.index("--hf-overrides") + 1])["text_config"]
        assert None not in overrides.values()
        assert overrides["rope_parameters"]["factor"] == 4.0


class TestWrittenFolder:
    @pytest.fixture
    def model(self, tmp_path):
        folder = tmp_path / "model"
        folder.mkdir()
        (folder / "config.json").write_text(json.dumps(llama(rope_scaling=None)))
        (folder / "model.safetensors").write_bytes(b"weights")
        (folder / "tokenizer_config.json").write_text(json.dumps({"model_max_length": 8192}))
        return folder

    @pytest.mark.parametrize("engine", ENGINES)
    def test_weights_are_linked_and_length_limits_are_raised(self, engine, model, tmp_path):
        chosen, config = find_engine(engine), llama()
        candidate = encode(chosen, config, interpret_as_trained(config), parse("yarn:factor=2"), 16_384)
        (tmp_path / "out").mkdir()
        out = chosen.write_checkpoint(str(model), candidate, tmp_path / "out", 16_384)
        assert (out / "model.safetensors").is_symlink()
        assert (out / "model.safetensors").resolve() == (model / "model.safetensors").resolve()
        assert json.loads((out / "tokenizer_config.json").read_text())["model_max_length"] == 16_384
        assert json.loads((model / "tokenizer_config.json").read_text())["model_max_length"] == 8192
        written = json.loads((out / "config.json").read_text())
        assert frequencies_match(
            engine_frequencies(engine, written, 16_384), engine_frequencies(engine, candidate.config, 16_384)
        )


class TestCommands:
    @pytest.mark.parametrize(
        ("engine", "command"),
        [
            ("transformers4", "transformers serve --force_model out"),
            ("sglang", "python -m sglang.launch_server --model-path out --context-length 16384"),
            ("tensorrt-llm", "trtllm-serve out --max_seq_len 16384"),
            ("mlx-lm", "mlx_lm.server --model out"),
            ("exllamav2", "python examples/chat.py -m out -mode raw"),
            ("exllamav3", "python examples/chat.py -m out -mode raw -cs 16384"),
            ("tgi", "text-generation-launcher --model-id out --max-input-tokens 16383 --max-total-tokens 16384"),
            ("lmdeploy", "lmdeploy serve api_server out --session-len 16384"),
        ],
    )
    def test_the_command_for_a_folder(self, engine, command):
        assert find_engine(engine).build_command("out", 16_384) == command

    @pytest.mark.parametrize(
        ("engine", "flag"), [("sglang", "--json-model-override-args"), ("lmdeploy", "--hf-overrides")]
    )
    def test_changes_are_passed_on_the_command_line(self, engine, flag):
        candidate = encode(
            find_engine(engine), llama(), interpret_as_trained(llama()), parse("linear:factor=2"), 16_384
        )
        words = shlex.split(find_engine(engine).build_command("some/model", 16_384, candidate.changes))
        given = json.loads(words[words.index(flag) + 1])
        assert given["rope_parameters"]["factor"] == 2.0
        assert None not in given.values()

    @pytest.mark.parametrize("engine", ["transformers4", "tensorrt-llm", "mlx-lm", "exllamav2", "exllamav3", "tgi"])
    def test_engines_without_such_an_option_require_a_folder(self, engine):
        with pytest.raises(InputError, match="out: got None; expected a folder"):
            find_engine(engine).build_command("some/model", 16_384, {"rope_theta": 1.0})

    def test_the_cache_size_of_exllamav3_is_a_multiple_of_its_page(self):
        assert find_engine("exllamav3").build_command("out", 12_001).endswith("-cs 12032")
