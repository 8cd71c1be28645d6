"""How the engines read the real configurations of tests/real_configs, by the name of the case."""

from __future__ import annotations

import numpy as np
import pytest
from tests.helpers.real_configs import load_real_config, real_config_path
from tests.helpers.rotary_tables import compute_tables
from transformers import AutoConfig

from ropewalk import config as configs
from ropewalk.config.scaled_fields import expected_scalings
from ropewalk.errors import InputError, UnsupportedScalingError
from ropewalk.scaling import parse
from ropewalk.serving.engines import ENGINES, find_engine
from ropewalk.serving.engines.base import EngineConfigError
from ropewalk.serving.engines.encode import encode
from ropewalk.serving.engines.trained_config import interpret_as_trained

REAL_CONFIGS = real_config_path("mimo").parent


def main_frequencies(engine, config, length):
    """Return the frequencies of the layers that attend to the whole text, as the engine computes them."""
    layer = find_engine(engine).interpret(config, length).main_layer
    return configs.compute_layer_frequencies(layer.scaling, layer, length)


class TestMLXLM:
    """The file of each architecture decides whether rope_scaling is read at all."""

    @pytest.mark.parametrize("case", ["qwen3_30b_a3b_yarn", "mixtral_yarn"])
    def test_a_plain_rotary_ignores_rope_scaling(self, case):
        config, engine = load_real_config(case), find_engine("mlx-lm")
        got = main_frequencies("mlx-lm", config, 65_536)
        np.testing.assert_allclose(got.inv_freq, 1e6 ** (-np.arange(0, 128, 2) / 128))
        assert got.attention_factor == 1
        assert "never reads a scaling from rope_scaling" in engine.explain(config)

    @pytest.mark.parametrize("case", ["qwen3_30b_a3b_yarn", "mixtral_yarn"])
    def test_an_export_is_refused_with_another_base_as_the_nearest_way(self, case):
        config, engine = load_real_config(case), find_engine("mlx-lm")
        with pytest.raises(UnsupportedScalingError, match="ntk:factor=") as error:
            encode(engine, config, interpret_as_trained(config), parse("yarn:factor=4,original_length=32768"), 131_072)
        candidate = encode(engine, config, interpret_as_trained(config), parse(error.value.nearest), 131_072)
        assert candidate.encoded_as == "rope_theta"
        assert "rope_scaling" not in candidate.config

    @pytest.mark.parametrize("model_type", ["lfm2", "glm4_moe", "minimax_m2", "cohere2", "starcoder2", "mimo_v2_flash"])
    def test_other_architectures_with_a_plain_rotary(self, model_type):
        table = find_engine("mlx-lm")._table
        assert table.architectures[table.aliases.get(model_type, model_type)]["scaling"] == "none"

    @pytest.mark.parametrize("model_type", ["qwen3_5_moe", "qwen3_vl", "kimi_vl", "qwen3_next", "step3p5"])
    def test_architectures_that_have_their_attention_from_another_file(self, model_type):
        assert find_engine("mlx-lm")._table.architectures[model_type]["scaling"] == "any"

    def test_an_architecture_that_it_does_not_have_is_named(self):
        with pytest.raises(EngineConfigError, match=r"model_type: got 'deepseek_v4'.*MLX-LM 0\.32\.2"):
            find_engine("mlx-lm").interpret(load_real_config("dsv4"), 131_072)

    def test_qwen35_lost_has_the_base_of_its_file(self):
        # mlx_lm/models/qwen3_5.py: rope_parameters.get("rope_theta", 100000.0)
        assert find_engine("mlx-lm").interpret(load_real_config("qwen35_lost"), 262_144).main_layer.rope.base == 100_000

    def test_mimo_can_only_get_another_base(self):
        config, engine = load_real_config("mimo"), find_engine("mlx-lm")
        with pytest.raises(UnsupportedScalingError, match="the nearest is ntk:factor=2"):
            encode(engine, config, interpret_as_trained(config), parse("yarn:factor=2"), 524_288)
        candidate = encode(engine, config, interpret_as_trained(config), parse("ntk:factor=2"), 524_288)
        assert candidate.changes["rope_theta"] == pytest.approx(5e6 * 2 ** (64 / 62))
        assert "swa_rope_theta" not in candidate.changes

    def test_an_architecture_accepts_a_type_and_ignores_it(self):
        config = {
            "model_type": "qwen2_moe", "hidden_size": 2048, "num_attention_heads": 16, "max_position_embeddings": 8192,
            "rope_scaling": {"type": "linear", "factor": 4.0},
        }  # fmt: skip
        got = main_frequencies("mlx-lm", config, 8192)
        np.testing.assert_allclose(got.inv_freq, 1e6 ** (-np.arange(0, 128, 2) / 128))
        config["rope_scaling"] = {"type": "yarn", "factor": 4.0}
        with pytest.raises(EngineConfigError, match="linear"):
            find_engine("mlx-lm").interpret(config, 8192)


class TestSGLang:
    def test_mixtral_yarn_is_not_scaled(self):
        config = load_real_config("mixtral_yarn")
        np.testing.assert_allclose(main_frequencies("sglang", config, 65_536).inv_freq[-1], 1e6 ** (-126 / 128))
        assert find_engine("sglang").explain(config) == "its MixtralForCausalLM never reads a scaling"


class TestTransformers:
    """Rope types, and exports in the form that each architecture reads: the rotary module is the reference."""

    def test_kimi_k3_draft_has_a_type_that_transformers_does_not_know(self):
        with pytest.raises(EngineConfigError, match="rope_type: got 'deepseek_yarn'; expected default, linear"):
            find_engine("transformers").interpret(load_real_config("kimi_k3_draft"), 32_768)

    @pytest.mark.parametrize(
        "case",
        ["mimo", "step37", "dsv4", "olmo3_7b", "gemma3_27b", "gemma4_31b", "qwen35_top", "qwen3vl_top", "qwen25vl_yarn",
         "qwen3_30b_a3b_yarn", "mixtral_yarn", "qwen3_next", "llama4s", "kimi_k3_draft", "swift_qwen3"],
    )  # fmt: skip
    @pytest.mark.parametrize("spec", ["yarn:factor={}", "linear:factor={}"])
    def test_the_rotary_module_reads_an_export_as_the_scaling(self, case, spec):
        config, engine = load_real_config(case), find_engine("transformers")
        trained = interpret_as_trained(config)
        length = 2 * trained.max_length
        scaling = parse(spec.format(length / trained.main_layer.rope.original_length))
        try:
            candidate = encode(engine, config, trained, scaling, length)
        except UnsupportedScalingError:
            assert case == "gemma4_31b", "only layers that rotate a part of their pairs have no other scaling"
            return
        parsed = AutoConfig.for_model(**candidate.config)
        tables = compute_tables(parsed.get_text_config(decoder=True))
        expected = expected_scalings(trained, scaling)
        for layer_type, (inv_freq, attention_factor) in tables.items():
            layer = trained.ropes.get(layer_type) or trained.main_layer
            frequencies = configs.compute_layer_frequencies(expected.get(layer_type, scaling), layer, length)
            np.testing.assert_allclose(inv_freq, frequencies.inv_freq, rtol=2e-6, err_msg=layer_type)
            assert attention_factor == pytest.approx(frequencies.attention_factor)
        assert set(trained.ropes) in (set(tables), {"all"})

    def test_qwen35_top_moves_into_the_text_part(self):
        config = load_real_config("qwen35_top")
        candidate = encode(
            find_engine("transformers"), config, interpret_as_trained(config), parse("yarn:factor=4"), 2**20
        )
        assert "rope_scaling" not in candidate.config
        assert candidate.changes["rope_scaling"] is None
        assert candidate.config["text_config"]["rope_parameters"]["rope_type"] == "yarn"
        with pytest.raises(InputError, match="no option removes rope_scaling"):
            find_engine("vllm").build_command("model", 2**20, candidate.changes)


class TestVLLM:
    """One table for all lengths, and MRoPE that enlarges the original length."""

    def test_qwen25vl_yarn_has_a_ramp_for_four_times_its_original_length(self):
        config = load_real_config("qwen25vl_yarn")
        layer = find_engine("vllm").interpret(config, 128_000).main_layer
        got = configs.compute_layer_frequencies(layer.scaling, layer, 128_000).inv_freq
        # Correction dimensions of 32 and 1 rotations over 131,072 tokens, as in MRotaryEmbedding.
        theta = 1e6 ** (-np.arange(0, 128, 2) / 128)
        low, high = (128 * np.log(131_072 / (n * 2 * np.pi)) / (2 * np.log(1e6)) for n in (32, 1))
        blend = np.clip((np.arange(64) - np.floor(low)) / (np.ceil(high) - np.floor(low)), 0, 1)
        np.testing.assert_allclose(got, theta * (1 - blend) + theta / 4 * blend, rtol=1e-12)
        trained = interpret_as_trained(config).main_layer
        expected = configs.compute_layer_frequencies(trained.scaling, trained, 128_000).inv_freq
        assert np.abs(got / expected - 1).max() == pytest.approx(1.24, abs=0.005)
        assert "multiplies the original length of YaRN with mrope_section by 4" in find_engine("vllm").explain(config)

    def test_an_export_of_qwen25vl_yarn_divides_the_original_length(self):
        config = load_real_config("qwen25vl_yarn")
        scaling = parse("yarn:factor=4,original_length=32768")
        candidate = encode(find_engine("vllm"), config, interpret_as_trained(config), scaling, 131_072)
        assert candidate.changes["rope_parameters"]["original_max_position_embeddings"] == 8192
        assert candidate.changes["rope_parameters"]["mrope_section"] == [16, 24, 24]

    def test_qwen3vl_card_keeps_its_original_length(self):
        layer = find_engine("vllm").interpret(load_real_config("qwen3vl_card"), 786_432).main_layer
        assert (layer.scaling.original_length or layer.rope.original_length) == 262_144

    def test_dyn_8k_is_served_past_a_table_that_is_not_scaled(self):
        with pytest.raises(EngineConfigError, match=r"it serves 65,536 tokens, but its table ends at .*8,192"):
            find_engine("vllm").interpret(load_real_config("dyn_8k"), 8192)

    def test_dyn_trained_has_a_base_that_is_not_above_zero(self):
        # 2 x 512 / 1,024 - (2 - 1) = 0
        with pytest.raises(EngineConfigError, match="max_trained_positions: got 2048; expected less than 1,024"):
            find_engine("vllm").interpret(load_real_config("dyn_trained"), 512)

    def test_mimo_has_a_rotary_that_is_never_scaled(self):
        config = load_real_config("mimo")
        scaled = {**config, "rope_scaling": {"rope_type": "yarn", "factor": 4.0}, "max_position_embeddings": 1_048_576}
        layer = find_engine("vllm").interpret(scaled, 262_144).main_layer
        np.testing.assert_allclose(configs.compute_layer_frequencies(layer.scaling, layer, 262_144).inv_freq[-1],
                                   5e6 ** (-62 / 64))  # fmt: skip
        assert "never reads a scaling" in find_engine("vllm").explain(scaled)

    def test_an_architecture_without_a_model_file_is_left_to_transformers(self):
        config = {**load_real_config("swift_qwen3"), "architectures": ["BrandNewForCausalLM"]}
        assert find_engine("vllm").interpret(config, 40_960).ropes == interpret_as_trained(config).ropes
        assert "falls back to transformers" in find_engine("vllm").explain(config)


@pytest.mark.parametrize("case", sorted(path.name for path in REAL_CONFIGS.iterdir()))
def test_every_engine_answers_in_one_line(case):
    """Each engine of the format interprets the configuration or refuses it, and never raises another error."""
    path, refusals = str(real_config_path(case)), []
    for engine in ENGINES.values():
        if (engine.checkpoint_format == "gguf") != path.endswith(".gguf"):
            continue
        try:
            config, trained = engine.load_config(path)
            engine.interpret(config, trained.max_length or trained.main_layer.rope.original_length)
        except InputError as error:
            refusals.append(str(error))
    assert all("\n" not in refusal and len(refusal) < 500 for refusal in refusals), refusals
