"""The published configurations, compared with transformers."""

import json
import subprocess
import sys

import numpy as np
import pytest
import torch
from transformers import AutoConfig
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from ropewalk import config as configs
from ropewalk.config.published import find_published_model, published_models
from ropewalk.planning import plan

MODELS = {published.model: published.config for published in published_models().values()}
LONGER = {
    f"{published.model} longer": published.config_for_long_texts
    for published in published_models().values()
    if published.config_for_long_texts
}
# transformers has no class for Kimi K2; the code that is published with the model is that of DeepSeek V3.
EQUIVALENT_MODEL_TYPES = {"kimi_k2": "deepseek_v3"}


def reference_frequencies(config, length):
    """Return inv_freq and the attention factor that transformers computes in float32."""
    text = config.get("text_config", config)
    model_type = EQUIVALENT_MODEL_TYPES.get(text["model_type"], text["model_type"])
    fields = {key: json.loads(json.dumps(value)) for key, value in text.items() if key != "model_type"}
    parsed = AutoConfig.for_model(model_type, **fields)
    rope_type = parsed.rope_parameters["rope_type"]
    if rope_type != "default":
        inv_freq, factor = ROPE_INIT_FUNCTIONS[rope_type](parsed, torch.device("cpu"), seq_len=length)
        return inv_freq.numpy(), factor
    head_dim = getattr(parsed, "head_dim", None) or parsed.hidden_size // parsed.num_attention_heads
    dim = int(head_dim * parsed.rope_parameters.get("partial_rotary_factor", 1))
    base = parsed.rope_parameters["rope_theta"]
    return (1 / base ** (torch.arange(0, dim, 2, dtype=torch.int64).float() / dim)).numpy(), 1.0


@pytest.mark.parametrize("length", [1024, 131_072])  # within and beyond every original length of a model with two lists
@pytest.mark.parametrize("name", [*MODELS, *LONGER])
def test_frequencies_match_transformers(name, length):
    config = {**MODELS, **LONGER}[name]
    model_config = configs.from_dict(config)
    layer = model_config.main_layer
    ours = configs.compute_layer_frequencies(layer.scaling, layer, length)
    inv_freq, attention_factor = reference_frequencies(config, length)
    np.testing.assert_allclose(ours.inv_freq, inv_freq, rtol=1e-6)
    assert ours.attention_factor == pytest.approx(attention_factor, rel=1e-12)


def test_phi_4_mini_switches_to_its_long_list_past_the_original_length():
    layer = configs.from_dict(MODELS["microsoft/Phi-4-mini-instruct"]).ropes["all"]
    short, long = (configs.compute_layer_frequencies(layer.scaling, layer, n).inv_freq for n in (4096, 4097))
    assert (long <= short).all()
    assert long[-1] == pytest.approx(short[-1] / 47.77)


def test_unscaled_frequencies_match_the_rotary_module():
    from transformers.models.glm4_moe.modeling_glm4_moe import Glm4MoeRotaryEmbedding
    from transformers.models.minimax_m2.modeling_minimax_m2 import MiniMaxM2RotaryEmbedding

    for name, module in (
        ("zai-org/GLM-4.6", Glm4MoeRotaryEmbedding),
        ("MiniMaxAI/MiniMax-M2", MiniMaxM2RotaryEmbedding),
    ):
        fields = dict(MODELS[name])
        parsed = AutoConfig.for_model(fields.pop("model_type"), **fields)
        layer = configs.from_dict(MODELS[name]).ropes["all"]
        np.testing.assert_allclose(layer.rope.inv_freq, module(parsed).inv_freq.numpy(), rtol=1e-6)


def test_every_file_has_a_source():
    for published in published_models().values():
        assert published.source == f"https://huggingface.co/{published.model}/blob/main/config.json"
        assert published.long is None or published.long["source"].endswith(published.model)
    assert len(published_models()) >= 20


def test_find_by_name_or_by_equal_configuration():
    assert find_published_model("Qwen/Qwen3-8B").model == "Qwen/Qwen3-8B"
    assert find_published_model("/models/qwen3-8b/").model == "Qwen/Qwen3-8B"
    assert find_published_model("gpt2") is None
    assert find_published_model() is None
    config = MODELS["openai/gpt-oss-20b"]
    assert find_published_model(model_config=configs.from_dict(config)).model == "openai/gpt-oss-20b"
    assert find_published_model(model_config=configs.from_dict({**config, "rope_theta": 10_000})) is None
    longer = LONGER["Qwen/Qwen3-8B longer"]
    assert find_published_model(model_config=configs.from_dict(longer)).model == "Qwen/Qwen3-8B"


@pytest.mark.parametrize(("target", "factor"), [(131_072, 4), (65_536, 2), (50_000, 1.75)])
def test_plan_uses_the_published_scaling(target, factor):
    result = plan(MODELS["Qwen/Qwen3-8B"], target)
    assert result.scaling.factor == factor
    assert result.rope_parameters["original_max_position_embeddings"] == 32_768
    assert result.max_position_embeddings == factor * 32_768
    assert any("https://huggingface.co/Qwen/Qwen3-8B" in reason for reason in result.reasons)


def test_plan_chooses_a_method_past_the_published_length():
    result = plan(MODELS["Qwen/Qwen3-8B"], 262_144)
    assert result.original_length == 40_960
    assert not any("makers" in reason for reason in result.reasons)


def test_published_models_do_not_import_torch():
    heavy = "bool({'torch', 'transformers'} & set(sys.modules))"
    code = f"import sys; from ropewalk.config.published import published_models; published_models(); sys.exit({heavy})"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
