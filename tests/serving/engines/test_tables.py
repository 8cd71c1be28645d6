"""The tables of architectures: entries that were read by hand from the files named beside them."""

from __future__ import annotations

import numpy as np
import pytest
from tests.helpers.real_configs import load_real_config
from transformers import CONFIG_MAPPING

from ropewalk.errors import InputError
from ropewalk.scaling import parse
from ropewalk.scaling.none import NoScaling
from ropewalk.serving.engines import find_engine
from ropewalk.serving.engines.base import EngineConfigError
from ropewalk.serving.engines.encode import encode
from ropewalk.serving.engines.tables import load_table
from ropewalk.serving.engines.trained_config import interpret_as_trained

# Engine, architecture, column, value, and the file of that version that says so.
READ_BY_HAND = [
    ("transformers", "llama", "partial_rotary_factor", False, "modeling_llama.py: compute_default_rope_parameters"),
    ("transformers", "glm4", "partial_rotary_factor", True, "modeling_glm4.py: compute_default_rope_parameters"),
    ("transformers", "deepseek_v4", "layer_types", True, "modeling_deepseek_v4.py: DeepseekV4RotaryEmbedding"),
    ("transformers", "llama", "layer_types", False, "modeling_llama.py: LlamaRotaryEmbedding"),
    ("transformers", "qwen2_5_vl_text", "mrope", True, "modeling_qwen2_5_vl.py: Qwen2_5_VLRotaryEmbedding"),
    ("transformers", "qwen3", "mrope", False, "modeling_qwen3.py"),
    ("transformers", "ministral3", "temperature", True, "modeling_ministral3.py: get_llama_4_attn_scale"),
    ("transformers", "mistral", "temperature", False, "modeling_mistral.py"),
    ("transformers", "deepseek_v2", "softmax_factor", True, "modeling_deepseek_v2.py: DeepseekV2Attention"),
    ("transformers", "gptj", "scaling", "none", "modeling_gptj.py: create_sinusoidal_positions"),
    ("transformers", "dbrx", "scaling", "any", "modeling_dbrx.py: DbrxRotaryEmbedding"),
    ("transformers4", "dbrx", "scaling", "none", "modeling_dbrx.py: DbrxRotaryEmbedding(dim, ..., base)"),
    ("transformers4", "chameleon", "scaling", "own", "modeling_chameleon.py: _init_rope"),
    ("transformers4", "phimoe", "scaling", "any", "modeling_phimoe.py: PhimoeRotaryEmbedding"),
    ("transformers4", "llama", "partial_rotary_factor", True, "modeling_rope_utils.py: _compute_default_rope_param..."),
    ("transformers4", "deepseek_v2", "softmax_factor", False, "modeling_deepseek_v2.py: DeepseekV2Attention"),
    ("transformers4", "deepseek_v3", "softmax_factor", True, "modeling_deepseek_v3.py: DeepseekV3Attention"),
    ("transformers4", "llama4_text", "temperature", True, "modeling_llama4.py: Llama4TextAttention"),
    ("transformers4", "gemma3_text", "layer_types", True, "modeling_gemma3.py: Gemma3TextModel"),
    ("mlx-lm", "ministral3", "temperature", True, "mlx_lm/models/ministral3.py: llama_4_scaling_beta"),
    ("mlx-lm", "llama", "temperature", False, "mlx_lm/models/llama.py"),
    ("transformers4", "qwen2_vl", "text_part", "qwen2_vl_text", "configuration_qwen2_vl.py: sub_configs"),
]  # fmt: skip


@pytest.mark.parametrize(("engine", "architecture", "column", "value", "source"), READ_BY_HAND)
def test_an_entry_agrees_with_the_source_code(engine, architecture, column, value, source):
    assert load_table(engine).architectures[architecture][column] == value, source


def test_every_model_type_of_the_installed_transformers_is_known():
    table = load_table("transformers")
    for name in CONFIG_MAPPING:
        table.find_model_type({"model_type": name})


@pytest.mark.parametrize("model_type", ["lfm2_vl", "code_llama", "gpt-sw3"])
def test_other_names_of_an_architecture_are_known(model_type):
    # transformers 4.57.6, models/auto/configuration_auto.py: CONFIG_MAPPING_NAMES
    load_table("transformers4").find_model_type({"model_type": model_type})


class TestTransformers4:
    def test_an_architecture_that_came_with_version_5_is_refused_in_one_line(self):
        config, engine = load_real_config("dsv4"), find_engine("transformers4")
        message = r"^transformers 4: model_type: got 'deepseek_v4'; expected an architecture of transformers 4\.57\.6$"
        with pytest.raises(EngineConfigError, match=message):
            engine.interpret(config, 65_536)
        with pytest.raises(EngineConfigError, match=message):
            encode(engine, config, interpret_as_trained(config), parse("yarn:factor=32"), 2_097_152)

    def test_an_architecture_that_comes_with_its_own_code_is_not_refused(self):
        config = {**load_real_config("dsv4"), "auto_map": {"AutoConfig": "configuration_deepseek.DeepseekV4Config"}}
        assert find_engine("transformers4").interpret(config, 65_536).ropes

    def test_an_architecture_without_scaling_ignores_it(self):
        config = {
            "model_type": "dbrx", "d_model": 2048, "n_heads": 16, "n_layers": 2, "max_seq_len": 8192,
            "attn_config": {"kv_n_heads": 4, "rope_theta": 500_000.0},
            "rope_scaling": {"rope_type": "linear", "factor": 4.0},
        }  # fmt: skip
        engine = find_engine("transformers4")
        layer = engine.interpret(config, 8192).main_layer
        assert layer.scaling == NoScaling()
        assert engine.explain(config) == "its dbrx never reads a scaling"


def test_transformers_5_refuses_an_architecture_that_only_comes_with_its_own_code():
    config = load_real_config("internlm2_dynamic")
    with pytest.raises(InputError, match=r"model_type: got 'internlm2'; expected an architecture of transformers 5"):
        find_engine("transformers").interpret(config, 4096)


def test_an_unscaled_head_is_rotated_completely_where_the_module_ignores_the_partial_factor():
    heads = {"hidden_size": 2048, "num_attention_heads": 16, "num_hidden_layers": 2, "max_position_embeddings": 8192}
    partial = {**heads, "rope_theta": 10_000.0, "partial_rotary_factor": 0.5}
    for model_type, dim in (("llama", 128), ("glm4", 64)):
        config = {**partial, "model_type": model_type, "head_dim": 128}
        rope = find_engine("transformers").interpret(config, 8192).main_layer.rope
        np.testing.assert_equal(rope.dim, dim)
