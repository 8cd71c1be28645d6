"""The published configurations, compared with transformers."""

import importlib
import json
import subprocess
import sys

import numpy as np
import pytest
import torch
from tests.helpers.real_configs import load_real_config
from transformers import AutoConfig

from ropewalk import config as configs
from ropewalk.config.published import find_published_model, published_models
from ropewalk.planning import plan

MODELS = {published.model: published.config for published in published_models().values()}
LONGER = {
    f"{published.model} longer {number}": config
    for published in published_models().values()
    for number, config in enumerate(published.configs_for_long_texts)
}
# transformers has no class for Kimi K2; the code that is published with the model is that of DeepSeek V3.
EQUIVALENT_MODEL_TYPES = {"kimi_k2": "deepseek_v3"}


def build_transformers_config(config):
    """Return the configuration of the text part, parsed by its class in transformers."""
    fields = json.loads(json.dumps(config))
    for part in (fields, fields.get("text_config", {})):
        if part.get("model_type") in EQUIVALENT_MODEL_TYPES:
            part["model_type"] = EQUIVALENT_MODEL_TYPES[part["model_type"]]
    return AutoConfig.for_model(fields.pop("model_type"), **fields).get_text_config()


def build_rotary_module(parsed):
    """Return the rotary module of the text model that transformers has for a parsed configuration."""
    module = importlib.import_module(type(parsed).__module__.replace(".configuration_", ".modeling_"))
    names = [name for name in vars(module) if name.endswith("RotaryEmbedding") and "Vision" not in name]
    (name,) = [name for name in names if "Text" in name] or names
    return getattr(module, name)(parsed)


def reference_frequencies(config, layer_type, length):
    """Return inv_freq and the attention factor, in float32, of the rotary module of transformers at a length."""
    rotary = build_rotary_module(build_transformers_config(config))
    if not hasattr(rotary, "inv_freq"):
        return getattr(rotary, f"{layer_type}_inv_freq").numpy(), getattr(rotary, f"{layer_type}_attention_scaling")
    positions = torch.tensor([[0, length - 1]])
    rotary(torch.zeros(1), positions)  # longrope chooses its list by the largest position
    return rotary.inv_freq.numpy(), rotary.attention_scaling


@pytest.mark.parametrize("length", [1024, 131_072])  # within and beyond every original length of a model with two lists
@pytest.mark.parametrize("name", [*MODELS, *LONGER])
def test_frequencies_match_transformers(name, length):
    config = {**MODELS, **LONGER}[name]
    model_config = configs.from_dict(config)
    for layer_type, layer in model_config.ropes.items():
        ours = configs.compute_layer_frequencies(layer.scaling, layer, length)
        inv_freq, attention_factor = reference_frequencies(config, layer_type, length)
        np.testing.assert_allclose(ours.inv_freq, inv_freq, rtol=1e-6)
        assert ours.attention_factor == pytest.approx(attention_factor, rel=1e-12)


def test_phi_4_mini_switches_to_its_long_list_past_the_original_length():
    layer = configs.from_dict(MODELS["microsoft/Phi-4-mini-instruct"]).ropes["all"]
    short, long = (configs.compute_layer_frequencies(layer.scaling, layer, n).inv_freq for n in (4096, 4097))
    assert (long <= short).all()
    assert long[-1] == pytest.approx(short[-1] / 47.77)


def test_every_file_has_a_source():
    for published in published_models().values():
        assert published.source == f"https://huggingface.co/{published.model}/blob/main/config.json"
        assert published.long is None or published.long["source"] in (
            f"https://huggingface.co/{published.model}",
            "https://github.com/QwenLM/Qwen3-VL",  # its README has what the model cards leave out
        )


def test_find_by_name_or_by_equal_configuration():
    assert find_published_model("Qwen/Qwen3-8B").model == "Qwen/Qwen3-8B"
    assert find_published_model("/models/qwen3-8b/").model == "Qwen/Qwen3-8B"
    assert find_published_model("gpt2") is None
    assert find_published_model() is None
    config = MODELS["openai/gpt-oss-20b"]
    assert find_published_model(model_config=configs.from_dict(config)).model == "openai/gpt-oss-20b"
    assert find_published_model(model_config=configs.from_dict({**config, "rope_theta": 10_000})) is None


@pytest.mark.parametrize("name", [*MODELS, *LONGER])
def test_find_by_an_equal_configuration_gives_equal_advice(name):
    found = find_published_model(model_config=configs.from_dict({**MODELS, **LONGER}[name]))
    advice, published_advice = (
        {key: value for key, value in (model.long or {}).items() if key != "source"}
        for model in (found, published_models()[name.split(" ")[0]])
    )
    assert advice == published_advice


@pytest.mark.parametrize("name", MODELS)
def test_find_by_name_prefers_the_model_itself_to_one_with_an_equal_configuration(name):
    assert find_published_model(f"/models/{name}", configs.from_dict(MODELS["openai/gpt-oss-20b"])).model == name


@pytest.mark.parametrize("factor", [2.0, 3.0])
@pytest.mark.parametrize("declared", [262_144, 1_000_000])
def test_find_qwen3_vl_with_each_factor_that_its_makers_recommend_for_a_million_tokens(factor, declared):
    config = load_real_config("qwen3vl_card")
    config["text_config"]["rope_scaling"]["factor"] = factor
    config["text_config"]["max_position_embeddings"] = declared
    assert find_published_model(model_config=configs.from_dict(config)).model.startswith("Qwen/Qwen3-VL-")
    config["text_config"]["rope_scaling"]["factor"] = 4.0
    assert find_published_model(model_config=configs.from_dict(config)) is None


@pytest.mark.parametrize(
    ("name", "field"), [("Qwen/Qwen3-VL-8B-Instruct", "rope_scaling"), ("Qwen/Qwen3.5-27B", "rope_parameters")]
)
def test_the_advice_goes_into_the_rope_dict_of_the_text_part(name, field):
    published = published_models()[name]
    (longer, *_) = published.configs_for_long_texts
    before, after = published.config["text_config"], longer["text_config"]
    assert after[field] == {**before[field], **published.long["rope_scaling"]}
    assert set(longer) == set(published.config)
    assert set(after) == set(before)


@pytest.mark.parametrize(("target", "factor"), [(131_072, 4), (65_536, 2), (50_000, 1.75)])
def test_plan_uses_the_published_scaling(target, factor):
    result = plan(MODELS["Qwen/Qwen3-8B"], target)
    assert result.scaling.factor == factor
    assert result.rope_parameters["original_max_position_embeddings"] == 32_768
    assert result.max_position_embeddings == factor * 32_768
    assert any("https://huggingface.co/Qwen/Qwen3-8B" in reason for reason in result.reasons)


@pytest.mark.parametrize("name", ["Qwen/Qwen3-VL-8B-Instruct", "Qwen/Qwen3-VL-235B-A22B-Instruct"])
@pytest.mark.parametrize("target", [1_000_000, 1_048_576])
def test_plan_follows_the_makers_of_qwen3_vl_whose_positions_grow_more_slowly_than_tokens(name, target):
    result = plan(MODELS[name], target)
    assert result.scaling.factor == 3
    assert result.rope_parameters["mrope_section"] == [24, 20, 20]
    assert result.max_position_embeddings >= target


def test_plan_chooses_a_method_past_the_published_length():
    result = plan(MODELS["Qwen/Qwen3-8B"], 262_144)
    assert result.original_length == 40_960
    assert not any("makers" in reason for reason in result.reasons)


def test_published_models_do_not_import_torch():
    heavy = "bool({'torch', 'transformers'} & set(sys.modules))"
    code = f"import sys; from ropewalk.config.published import published_models; published_models(); sys.exit({heavy})"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
