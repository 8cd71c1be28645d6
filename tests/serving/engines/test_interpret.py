"""Each engine's reading of a configuration, against hand-worked values; and what is written, against the reading."""

from __future__ import annotations

import json
import math
import shlex

import numpy as np
import pytest

from ropewalk import config as configs
from ropewalk.errors import InputError
from ropewalk.scaling import REGISTRY, parse
from ropewalk.serving.engines import find_engine
from ropewalk.serving.engines.encode import encode, same
from ropewalk.serving.engines.folder_engine import meaning

ENGINES = ("transformers4", "sglang", "tensorrt-llm", "mlx-lm", "exllamav2", "exllamav3", "tgi", "lmdeploy")
YARN_2 = {"rope_type": "yarn", "factor": 2.0, "original_max_position_embeddings": 8192}
DYNAMIC_2 = {"rope_type": "dynamic", "factor": 2.0}
NATURAL_2 = 0.1 * math.log(2) + 1
SHORT, LONG = [1 + i / 64 for i in range(32)], [1 + i / 8 for i in range(32)]
LISTS = {"rope_type": "longrope", "short_factor": SHORT, "long_factor": LONG}
# One spec for every method, and how many of the engines can be told it.
SPECS = {
    "none": ("none", 8),
    "linear": ("linear:factor=2", 8),
    "ntk": ("ntk:factor=2", 8),
    "dynamic-ntk": ("dynamic-ntk:factor=2", 3),
    "ntk-by-parts": ("ntk-by-parts:factor=2", 8),
    "dynamic-ntk-by-parts": ("dynamic-ntk-by-parts", 0),
    "yarn": ("yarn:factor=2,attention_factor=1.25", 8),
    "dynamic-yarn": ("dynamic-yarn", 0),
    "llama3": ("llama3:factor=4", 8),
    "longrope": (json.dumps({"name": "longrope", "factor": 2, "short_factor": SHORT, "long_factor": LONG}), 6),
    "abf": ("abf:base=1000000", 8),
    "critical-base": ("critical-base:factor=2", 8),
    "proportional": ("proportional:p=0.5", 1),
    "power-ntk": ("power-ntk", 0),
    "log-ntk": ("log-ntk", 0),
}


def llama(**fields):
    """A Llama of 8,192 tokens, base 100,000, with 64 rotary dimensions."""
    own = {
        "model_type": "llama",
        "hidden_size": 576,
        "num_attention_heads": 9,
        "num_hidden_layers": 2,
        "max_position_embeddings": 8192,
        "rope_theta": 100_000.0,
    }
    return {key: value for key, value in {**own, **fields}.items() if value is not None}


def scaled_by(said, **fields):
    return llama(rope_scaling=said, **fields)


def read(engine, config, length=12_000):
    """The main layer's frequencies as the engine has them."""
    model_config = find_engine(engine).interpret(config, length)
    layer = model_config.ropes[model_config.main]
    return configs.layer_frequencies(layer.scaling, layer, length)


def powers(base, dim=64):
    return base ** (-np.arange(0, dim, 2) / dim)


def ramped(original, factor, low, high, base=100_000.0, dim=64):
    """YaRN's frequencies with the ramp between two given indices."""
    blend = np.clip((np.arange(dim // 2) - low) / (high - low), 0, 1)
    return powers(base, dim) * (1 - blend + blend / factor)


@pytest.mark.parametrize("method", sorted(REGISTRY))
def test_so_many_engines_can_be_told_a_method_and_the_others_refuse_in_a_line(method):
    spec, expected = SPECS[method]
    told, refusals = [], []
    for engine in ENGINES:
        try:
            encode(find_engine(engine), llama(), meaning(llama()), parse(spec), 16_384)
            told.append(engine)
        except InputError as error:
            refusals.append(str(error))
    assert len(told) == expected, told
    assert all("the nearest is" in line and "\n" not in line for line in refusals), refusals


@pytest.mark.parametrize("engine", ENGINES)
def test_without_scaling_the_base_is_the_models(engine):
    np.testing.assert_allclose(read(engine, llama(), 8192).inv_freq, powers(100_000.0))


@pytest.mark.parametrize("engine", ENGINES)
def test_llama_3_is_read_alike_by_all(engine):
    said = {
        "rope_type": "llama3",
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    }
    got = read(engine, scaled_by(said, max_position_embeddings=65_536, rope_theta=500_000.0)).inv_freq
    plain = powers(500_000.0)
    turns = 8192 * plain / (2 * math.pi)
    np.testing.assert_allclose(got[turns >= 4], plain[turns >= 4])
    np.testing.assert_allclose(got[turns <= 1], plain[turns <= 1] / 8)
    between = (turns > 1) & (turns < 4)
    kept = (turns[between] - 1) / 3
    np.testing.assert_allclose(got[between], plain[between] * (kept + (1 - kept) / 8))


class TestBaseOfVersion5:
    config = llama(rope_theta=None, rope_parameters={"rope_type": "default", "rope_theta": 500_000.0})

    @pytest.mark.parametrize("engine", ["transformers4", "mlx-lm", "exllamav2", "tgi"])
    def test_is_lost_on_those_who_know_rope_theta_alone(self, engine):
        np.testing.assert_allclose(read(engine, self.config, 8192).inv_freq, powers(10_000.0))

    @pytest.mark.parametrize("engine", ["sglang", "tensorrt-llm", "exllamav3", "lmdeploy"])
    def test_is_read_by_the_others(self, engine):
        np.testing.assert_allclose(read(engine, self.config, 8192).inv_freq, powers(500_000.0))

    @pytest.mark.parametrize("engine", ENGINES)
    def test_is_there_again_in_what_is_written(self, engine):
        candidate = encode(find_engine(engine), self.config, meaning(self.config), parse("none"), 8192)
        np.testing.assert_allclose(read(engine, candidate.config, 8192).inv_freq, powers(500_000.0))

    @pytest.mark.parametrize(
        ("engine", "model_type", "base"),
        [
            ("mlx-lm", "qwen3", 500_000.0),  # whose file knows it
            ("mlx-lm", "qwen2", 1_000_000.0),
            ("mlx-lm", "cohere", 8_000_000.0),
            ("exllamav2", "qwen2", 10_000.0),
            ("exllamav2", "mixtral", 10_000.0),
            ("transformers4", "olmo3", 10_000.0),
            ("transformers4", "mixtral", 1_000_000.0),
        ],
    )
    def test_every_engine_has_defaults_of_its_own(self, engine, model_type, base):
        np.testing.assert_allclose(read(engine, {**self.config, "model_type": model_type}, 8192).inv_freq, powers(base))

    def test_some_files_of_mlx_demand_one(self):
        with pytest.raises(InputError, match="MLX-LM: rope_theta: got None"):
            read("mlx-lm", {**self.config, "model_type": "granite"}, 8192)


class TestAttentionFactor:
    told = scaled_by({**YARN_2, "attention_factor": 1.5}, max_position_embeddings=16_384)

    @pytest.mark.parametrize("engine", ["sglang", "tensorrt-llm", "mlx-lm", "tgi"])
    def test_of_yarn_is_passed_over(self, engine):
        assert read(engine, self.told).attention_factor == pytest.approx(NATURAL_2)

    @pytest.mark.parametrize("engine", ["transformers4", "exllamav3", "lmdeploy"])
    def test_of_yarn_is_read(self, engine):
        assert read(engine, self.told).attention_factor == 1.5

    @pytest.mark.parametrize("engine", ["sglang", "tensorrt-llm", "mlx-lm", "exllamav2", "exllamav3"])
    def test_of_longrope_follows_from_the_two_lengths(self, engine):
        said = {**LISTS, "attention_factor": 1.5, "original_max_position_embeddings": 4096}
        config = scaled_by(said, max_position_embeddings=16_384, original_max_position_embeddings=4096)
        # ln 4 / ln 4096 is one sixth
        assert read(engine, config).attention_factor == pytest.approx(math.sqrt(1 + 1 / 6))
        assert read("transformers4", config).attention_factor == 1.5

    def test_sglang_multiplies_attn_factor_and_takes_the_mscales_of_its_lists(self):
        config = scaled_by({**YARN_2, "attn_factor": 1.5}, max_position_embeddings=16_384)
        assert read("sglang", config).attention_factor == pytest.approx(1.5 * NATURAL_2)
        said = {**LISTS, "original_max_position_embeddings": 8192, "short_mscale": 1.1, "long_mscale": 1.25}
        config = scaled_by(said, max_position_embeddings=16_384)
        assert read("sglang", config, 8000).attention_factor == 1.1
        assert read("sglang", config, 12_000).attention_factor == 1.25

    @pytest.mark.parametrize("engine", ["mlx-lm", "tensorrt-llm", "tgi"])
    def test_one_mscale_alone_counts(self, engine):
        config = scaled_by({**YARN_2, "mscale": 0.5}, max_position_embeddings=16_384)
        assert read(engine, config).attention_factor == pytest.approx(1 + 0.05 * math.log(2))
        assert read("transformers4", config).attention_factor == pytest.approx(NATURAL_2)


class TestYarnsRamp:
    # 64 ln(8192 / (2 pi 32)) / (2 ln 100000) is 10.3; with 1 in the place of 32 it is 19.9. With 16,384: 12.2 and 21.9.
    @pytest.mark.parametrize("engine", ["transformers4", "sglang", "tensorrt-llm", "mlx-lm", "exllamav3", "tgi"])
    def test_stands_on_the_original_length(self, engine):
        got = read(engine, scaled_by(YARN_2, max_position_embeddings=16_384))
        np.testing.assert_allclose(got.inv_freq, ramped(8192, 2, 10, 20))

    @pytest.mark.parametrize("engine", ["exllamav2", "lmdeploy"])
    def test_stands_on_the_declared_length(self, engine):
        got = read(engine, scaled_by(YARN_2, max_position_embeddings=16_384))
        np.testing.assert_allclose(got.inv_freq, ramped(16_384, 2, 12, 22))

    def test_the_pytorch_backend_of_lmdeploy_has_it_right(self):
        config = scaled_by(YARN_2, max_position_embeddings=16_384, model_type="mistral")
        np.testing.assert_allclose(read("lmdeploy", config).inv_freq, ramped(8192, 2, 10, 20))

    @pytest.mark.parametrize("engine", ["tgi", "exllamav2"])
    def test_betas_are_passed_over(self, engine):
        plain = scaled_by(YARN_2, max_position_embeddings=16_384)
        told = scaled_by({**YARN_2, "beta_fast": 8.0, "beta_slow": 4.0}, max_position_embeddings=16_384)
        assert same(read(engine, told), read(engine, plain))

    @pytest.mark.parametrize("engine", ["tensorrt-llm", "mlx-lm", "tgi"])
    def test_truncate_is_passed_over(self, engine):
        told = scaled_by({**YARN_2, "truncate": False}, max_position_embeddings=16_384)
        np.testing.assert_allclose(read(engine, told).inv_freq, ramped(8192, 2, 10, 20))

    def test_mlx_takes_4096_for_an_original_length_that_is_not_said(self):
        # 64 ln(4096 / (2 pi 32)) / (2 ln 100000) is 8.4; with 1 it is 18.01
        got = read("mlx-lm", scaled_by({"rope_type": "yarn", "factor": 2.0}))
        np.testing.assert_allclose(got.inv_freq, ramped(4096, 2, 8, 19))


class TestYarnsFactor:
    four = scaled_by({**YARN_2, "factor": 4.0}, max_position_embeddings=16_384)

    @pytest.mark.parametrize("engine", ["exllamav3", "lmdeploy"])
    def test_is_the_declared_over_the_original_length(self, engine):
        assert read(engine, self.four).inv_freq[-1] == pytest.approx(powers(100_000.0)[-1] / 2)

    @pytest.mark.parametrize("engine", ["transformers4", "sglang", "tensorrt-llm", "mlx-lm", "tgi"])
    def test_is_the_one_that_is_said(self, engine):
        assert read(engine, self.four).inv_freq[-1] == pytest.approx(powers(100_000.0)[-1] / 4)

    @pytest.mark.parametrize("engine", ["exllamav2", "exllamav3", "lmdeploy"])
    def test_a_model_card_that_leaves_the_declared_length_gives_no_scaling(self, engine):
        np.testing.assert_allclose(read(engine, scaled_by(YARN_2), 8192).inv_freq, powers(100_000.0))


class TestIgnored:
    @pytest.mark.parametrize("rope_type", ["dynamic", "ntk", "proportional", "nonsense"])
    def test_exllamav2_passes_over_types_that_it_does_not_know(self, rope_type):
        got = read("exllamav2", scaled_by({"rope_type": rope_type, "factor": 2.0}), 8192)
        np.testing.assert_allclose(got.inv_freq, powers(100_000.0))

    def test_tgi_passes_over_linear(self):
        np.testing.assert_allclose(
            read("tgi", scaled_by({"type": "linear", "factor": 2.0})).inv_freq, powers(100_000.0)
        )

    def test_tensorrt_llm_passes_over_dynamic_without_alpha(self):
        config = scaled_by({"type": "dynamic", "factor": 2.0}, max_position_embeddings=16_384)
        np.testing.assert_allclose(read("tensorrt-llm", config).inv_freq, powers(100_000.0))
        config = scaled_by({"type": "dynamic", "alpha": 4.0}, max_position_embeddings=16_384)
        np.testing.assert_allclose(read("tensorrt-llm", config).inv_freq, powers(100_000.0 * 4 ** (64 / 62)))

    def test_sglang_passes_over_proportional_outside_of_gemma_4(self):
        said = {"rope_type": "proportional", "partial_rotary_factor": 0.5}
        got = read("sglang", llama(rope_theta=None, rope_parameters={**said, "rope_theta": 100_000.0}), 8192)
        np.testing.assert_allclose(got.inv_freq, powers(100_000.0))

    def test_mlx_serves_phi_3_without_a_type_that_it_does_not_know(self):
        said = {"type": "yarn", "factor": 2.0, "long_factor": LONG}
        got = read("mlx-lm", scaled_by(said, model_type="phi3"), 8192)
        np.testing.assert_allclose(got.inv_freq, powers(100_000.0))


@pytest.mark.parametrize(
    ("engine", "config", "field"),
    [
        ("transformers4", scaled_by({"rope_type": "proportional", "factor": 1.0}), "rope_scaling type"),
        ("transformers4", scaled_by({"rope_type": "yarn"}), "factor"),
        ("transformers4", scaled_by({**YARN_2, "type": "yarn"}, model_type="phi3"), "rope_scaling"),
        ("sglang", scaled_by({"rope_type": "ntk", "factor": 2.0}, max_position_embeddings=16_384), "rope_type"),
        ("sglang", llama(), "max_position_embeddings"),
        ("tensorrt-llm", scaled_by({"type": "proportional"}, max_position_embeddings=16_384), "rope_scaling type"),
        ("tensorrt-llm", scaled_by({"type": "linear", "factor": 2.0}), "max_position_embeddings"),
        ("mlx-lm", scaled_by({**LISTS, "rope_type": "su"}), "rope_scaling type"),
        ("mlx-lm", scaled_by({"type": "longrope", "long_factor": LONG}, model_type="phi3"), "short_factor"),
        ("exllamav2", scaled_by({**YARN_2, "type": "yarn"}, max_position_embeddings=16_384), "rope_scaling"),
        ("exllamav2", scaled_by(LISTS, max_position_embeddings=16_384), "original_max_position_embeddings"),
        ("exllamav2", llama(), "max_position_embeddings"),
        ("exllamav3", scaled_by({"rope_type": "dynamic", "factor": 2.0}), "rope_type"),
        ("exllamav3", scaled_by({**YARN_2, "original_max_position_embeddings": 65_536}), "max_position_embeddings"),
        ("tgi", scaled_by({"rope_type": "yarn", "factor": 2.0}), "original_max_position_embeddings"),
        ("tgi", scaled_by(LISTS, original_max_position_embeddings=4096), "short_factor and long_factor"),
        ("lmdeploy", scaled_by(LISTS), "rope_type"),
    ],
)
def test_what_an_engine_refuses_is_said_in_its_name(engine, config, field):
    with pytest.raises(InputError) as caught:
        find_engine(engine).interpret(config, 12_000)
    assert str(caught.value).startswith(f"{find_engine(engine).title}: {field}: got ")
    assert "\n" not in str(caught.value)


class TestDynamic:
    def test_sglang_makes_its_table_once_for_factor_times_the_declared_length(self):
        # 2 x 2 - 1
        for length in (1000, 12_000):
            got = read("sglang", scaled_by(DYNAMIC_2), length).inv_freq
            np.testing.assert_allclose(got, powers(100_000.0 * 3 ** (64 / 62)))

    def test_tgi_makes_it_for_the_length_that_it_serves(self):
        got = read("tgi", scaled_by(DYNAMIC_2), 16_384).inv_freq
        np.testing.assert_allclose(got, powers(100_000.0 * 3 ** (64 / 62)))
        np.testing.assert_allclose(read("tgi", scaled_by(DYNAMIC_2), 8192).inv_freq, powers(100_000.0))

    @pytest.mark.parametrize("engine", ["transformers4", "mlx-lm", "lmdeploy"])
    def test_others_follow_the_text(self, engine):
        for length, length_ratio in ((8000, 1), (12_288, 2), (16_384, 3)):
            got = read(engine, scaled_by(DYNAMIC_2), length).inv_freq
            np.testing.assert_allclose(got, powers(100_000.0 * length_ratio ** (64 / 62)))

    def test_alpha_is_sglangs_and_not_transformers(self):
        config = scaled_by({**DYNAMIC_2, "alpha": 4.0})
        np.testing.assert_allclose(read("sglang", config).inv_freq, powers(100_000.0 * 4 ** (64 / 62)))
        np.testing.assert_allclose(read("transformers4", config, 8192).inv_freq, powers(100_000.0))


class TestLists:
    def test_which_list_is_served(self):
        fields = {"max_position_embeddings": 16_384, "original_max_position_embeddings": 8192}
        config = scaled_by({**LISTS, "original_max_position_embeddings": 8192}, **fields)
        plain = powers(100_000.0)
        for engine, at_4k, at_12k in (
            ("transformers4", SHORT, LONG),
            ("sglang", SHORT, LONG),
            ("tensorrt-llm", SHORT, LONG),
            ("mlx-lm", LONG, LONG),
            ("exllamav2", LONG, LONG),
            ("exllamav3", LONG, LONG),
        ):
            np.testing.assert_allclose(read(engine, config, 4096).inv_freq, plain / at_4k)
            np.testing.assert_allclose(read(engine, config, 12_000).inv_freq, plain / at_12k)

    def test_transformers_4_looks_for_the_original_length_beside_the_dict_alone(self):
        config = scaled_by({**LISTS, "factor": 2.0, "original_max_position_embeddings": 4096})
        np.testing.assert_allclose(read("transformers4", config, 8000).inv_freq, powers(100_000.0) / SHORT)

    def test_tgi_multiplies_the_angles_by_the_mscales(self):
        said = {**LISTS, "long_factor": SHORT, "short_mscale": 1.5, "long_mscale": 1.5}
        got = read("tgi", scaled_by(said, original_max_position_embeddings=4096))
        np.testing.assert_allclose(got.inv_freq, powers(100_000.0) / SHORT * 1.5)
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
    def test_phi_3_is_read_by_its_two_lengths(self, engine):
        # sqrt(1 + ln 32 / ln 4096) is sqrt(17/12)
        assert read(engine, PHI_3).attention_factor == pytest.approx(math.sqrt(17 / 12))
        np.testing.assert_allclose(read(engine, PHI_3).inv_freq, powers(10_000.0) / LONG)

    @pytest.mark.parametrize("method", ["linear:factor=2", "yarn:factor=2", "llama3:factor=2", "ntk-by-parts:factor=2"])
    @pytest.mark.parametrize("engine", ["transformers4", "tensorrt-llm", "tgi"])
    def test_phi_3_takes_no_fourth_field_on_transformers_4(self, engine, method):
        candidate = encode(find_engine(engine), PHI_3, meaning(PHI_3), parse(method), 8192)
        assert candidate.config["rope_scaling"].keys() == {"type", "short_factor", "long_factor"}
        assert candidate.config["rope_scaling"]["type"] == "longrope"

    @pytest.mark.parametrize("rope_type", ["yarn", "linear", "llama3"])
    @pytest.mark.parametrize("engine", ["transformers4", "tensorrt-llm", "tgi", "sglang", "lmdeploy"])
    def test_of_phi_3_the_class_refuses_what_is_no_list(self, engine, rope_type):
        said = {"rope_type": rope_type, "factor": 2.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
        config = {**PHI_3, "rope_scaling": said}
        with pytest.raises(InputError, match=rf"{find_engine(engine).title}: rope_\w+: got .* class of phi3"):
            find_engine(engine).interpret(config, 8192)

    @pytest.mark.parametrize("engine", ENGINES)
    def test_gemma_3_is_written_with_its_local_base_and_its_factor(self, engine):
        candidate = encode(find_engine(engine), GEMMA_3, meaning(GEMMA_3), parse("linear:factor=8"), 131_072)
        text = candidate.config["text_config"]
        if find_engine(engine).nested:
            assert text["rope_parameters"] == {
                "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1_000_000.0},
                "sliding_attention": {"rope_type": "default", "rope_theta": 10_000.0},
            }
        else:
            assert (text["rope_theta"], text["rope_local_base_freq"]) == (1_000_000.0, 10_000.0)
            said = text["rope_scaling"]
            assert said.get("factor") == 8.0 or set(said["long_factor"]) == {8.0}
        assert text["hidden_size"] == 2560
        assert "rope_scaling" not in candidate.config

    @pytest.mark.parametrize("engine", ENGINES)
    def test_of_gemma_3_the_sliding_layers_turn_by_the_local_base(self, engine):
        local = find_engine(engine).interpret(GEMMA_3, 8192).ropes["sliding_attention"]
        np.testing.assert_allclose(local.scaling.frequencies(local.rope).inv_freq, powers(10_000.0, 256))

    def test_of_gemma_3_tgi_drops_the_scaling_and_lmdeploy_demands_a_factor(self):
        np.testing.assert_allclose(read("tgi", GEMMA_3).inv_freq, powers(1_000_000.0, 256))
        text = {key: value for key, value in GEMMA_3["text_config"].items() if key != "rope_scaling"}
        with pytest.raises(InputError, match="LMDeploy: factor"):
            find_engine("lmdeploy").interpret({"text_config": text}, 8192)

    @pytest.mark.parametrize("engine", [engine for engine in ENGINES if engine != "exllamav2"])
    def test_deepseeks_softmax_factor_is_kept(self, engine):
        got = read(engine, DEEPSEEK)
        assert got.attention_factor == pytest.approx(1)
        assert got.softmax_factor == pytest.approx((0.1 * math.log(40) + 1) ** 2)

    def test_of_deepseek_sglang_reads_any_scaling_as_yarn(self):
        linear = {**DEEPSEEK, "rope_scaling": {"rope_type": "linear", "factor": 4.0}}
        got = read("sglang", linear)
        # 64 ln(163840 / (2 pi 32)) / (2 ln 10000) is 23.3; with 1 it is 35.3
        np.testing.assert_allclose(got.inv_freq, ramped(163_840, 4, 23, 36, 10_000.0))

    @pytest.mark.parametrize("engine", ["tensorrt-llm", "mlx-lm", "tgi"])
    def test_gpt_oss_is_read_with_a_ramp_on_whole_indices(self, engine):
        # 64 ln(4096 / (2 pi 32)) / (2 ln 150000) is 8.1; with 1 it is 17.4
        np.testing.assert_allclose(read(engine, GPT_OSS).inv_freq, ramped(4096, 32, 8, 18, 150_000.0))
        assert not same(read(engine, GPT_OSS), read("transformers4", GPT_OSS))

    def test_gpt_oss_is_scaled_by_transformers_4_where_nothing_is_said(self):
        bare = {key: value for key, value in GPT_OSS.items() if key != "rope_scaling"}
        assert same(read("transformers4", bare), read("transformers4", GPT_OSS))
        candidate = encode(find_engine("transformers4"), GPT_OSS, meaning(GPT_OSS), parse("none"), 4096)
        np.testing.assert_allclose(read("transformers4", candidate.config, 4096).inv_freq, powers(150_000.0))

    def test_sglang_reads_sections_under_default_and_yarn_alone(self):
        for rope_type in ("linear", "llama3", "dynamic", "longrope"):
            with pytest.raises(InputError, match="no other reads mrope_section"):
                read(
                    "sglang", scaled_by({**LISTS, **YARN_2, "rope_type": rope_type, "mrope_section": [8, 12, 12]}), 8192
                )

    def test_sglang_has_no_lists_for_interleaved_pairs(self):
        config = scaled_by({**LISTS, "original_max_position_embeddings": 4096}, model_type="glm4")
        with pytest.raises(InputError, match="another type for interleaved pairs"):
            read("sglang", config, 8192)

    def test_partial_rotary_models_are_written_with_the_part_that_turns(self):
        config = llama(rope_theta=None, rope_parameters={"rope_theta": 100_000.0, "partial_rotary_factor": 0.5})
        for engine in ENGINES:
            candidate = encode(find_engine(engine), config, meaning(config), parse("linear:factor=2"), 16_384)
            got = find_engine(engine).interpret(candidate.config, 16_384)
            assert got.ropes["all"].rope.dim == 32

    def test_multimodal_sections_stay(self):
        said = {"type": "mrope", "mrope_section": [8, 12, 12]}
        for engine in ENGINES:
            config = scaled_by(said, max_position_embeddings=16_384)
            candidate = encode(find_engine(engine), config, meaning(config), parse("ntk:factor=2"), 16_384)
            written = candidate.config.get("rope_parameters") or candidate.config["rope_scaling"]
            assert written["mrope_section"] == [8, 12, 12]


class TestMerged:
    """SGLang and LMDeploy merge what the command says into the rope dict that is there: what it leaves out stays."""

    to_rope_dict = scaled_by(
        {**YARN_2, "factor": 4.0, "mscale": 1.0, "mscale_all_dim": 1.0}, max_position_embeddings=32_768
    )

    @pytest.mark.parametrize("engine", ["sglang", "lmdeploy"])
    @pytest.mark.parametrize("method", ["yarn:factor=2", "linear:factor=2", "none"])
    def test_what_stays_changes_nothing(self, engine, method):
        expected = parse(method).frequencies(_rope(self.to_rope_dict))
        candidate = encode(find_engine(engine), self.to_rope_dict, meaning(self.to_rope_dict), parse(method), 8192)
        held = {"rope_theta": 100_000.0, **self.to_rope_dict["rope_scaling"]}
        fields = {
            **self.to_rope_dict,
            **candidate.changes,
            "rope_parameters": {**held, **candidate.changes["rope_parameters"]},
        }
        got = read(engine, {key: value for key, value in fields.items() if value is not None}, 8192)
        np.testing.assert_allclose(got.inv_freq, expected.inv_freq)
        assert got.attention_factor == pytest.approx(expected.attention_factor)

    def test_a_folder_holds_nothing_of_it(self):
        candidate = encode(find_engine("sglang"), self.to_rope_dict, meaning(self.to_rope_dict), parse("none"), 8192)
        assert candidate.config["rope_parameters"] == {"rope_theta": 100_000.0, "rope_type": "default"}


class TestFolder:
    @pytest.fixture
    def model(self, tmp_path):
        folder = tmp_path / "model"
        folder.mkdir()
        (folder / "config.json").write_text(json.dumps(llama(rope_scaling=None)))
        (folder / "model.safetensors").write_bytes(b"weights")
        (folder / "tokenizer_config.json").write_text(json.dumps({"model_max_length": 8192}))
        return folder

    @pytest.mark.parametrize("engine", ENGINES)
    def test_weights_are_linked_and_the_rest_makes_room(self, engine, model, tmp_path):
        chosen, config = find_engine(engine), llama()
        candidate = encode(chosen, config, meaning(config), parse("yarn:factor=2"), 16_384)
        (tmp_path / "out").mkdir()
        out = chosen.write(str(model), candidate, tmp_path / "out", 16_384)
        assert (out / "model.safetensors").is_symlink()
        assert (out / "model.safetensors").resolve() == (model / "model.safetensors").resolve()
        assert json.loads((out / "tokenizer_config.json").read_text())["model_max_length"] == 16_384
        assert json.loads((model / "tokenizer_config.json").read_text())["model_max_length"] == 8192
        written = json.loads((out / "config.json").read_text())
        assert same(read(engine, written, 16_384), read(engine, candidate.config, 16_384))


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
    def test_the_command_of_a_folder(self, engine, command):
        assert find_engine(engine).command("out", 16_384) == command

    @pytest.mark.parametrize(
        ("engine", "flag"), [("sglang", "--json-model-override-args"), ("lmdeploy", "--hf-overrides")]
    )
    def test_the_changes_on_the_command_line(self, engine, flag):
        candidate = encode(find_engine(engine), llama(), meaning(llama()), parse("linear:factor=2"), 16_384)
        words = shlex.split(find_engine(engine).command("some/model", 16_384, candidate.changes))
        given = json.loads(words[words.index(flag) + 1])
        assert given["rope_parameters"]["factor"] == 2.0
        assert None not in given.values()

    @pytest.mark.parametrize("engine", ["transformers4", "tensorrt-llm", "mlx-lm", "exllamav2", "exllamav3", "tgi"])
    def test_those_that_take_none_there_say_so(self, engine):
        with pytest.raises(InputError, match="out: got None; expected a folder"):
            find_engine(engine).command("some/model", 16_384, {"rope_theta": 1.0})

    def test_the_cache_of_exllamav3_is_whole_pages(self):
        assert find_engine("exllamav3").command("out", 12_001).endswith("-cs 12032")


def _rope(config):
    return configs.from_dict(config).ropes["all"].rope
