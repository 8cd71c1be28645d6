"""How the engines read the real configurations of tests/real_configs, by the name of the case."""

from __future__ import annotations

import numpy as np
import pytest
from tests.helpers.real_configs import load_real_config

from ropewalk import config as configs
from ropewalk.errors import UnsupportedScalingError
from ropewalk.scaling import parse
from ropewalk.serving.engines import find_engine
from ropewalk.serving.engines.base import EngineConfigError
from ropewalk.serving.engines.encode import encode
from ropewalk.serving.engines.trained_config import interpret_as_trained


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

    def test_an_architecture_that_it_does_not_have_is_named(self):
        with pytest.raises(EngineConfigError, match=r"model_type: got 'deepseek_v4'.*MLX-LM 0\.32\.2"):
            find_engine("mlx-lm").interpret(load_real_config("dsv4"), 131_072)

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
