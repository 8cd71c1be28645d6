"""Plans: the chosen method and factor, the resulting configuration, and the memory of the KV cache."""

import copy
import dataclasses
import json
import math

import numpy as np
import pytest
from tests.helpers.gguf_model import small_gguf
from tests.helpers.real_configs import load_real_config, real_config_path
from transformers import AutoConfig, StableLmConfig

import ropewalk as rw
from ropewalk.config import AttentionShape, LayerShape, compute_layer_frequencies, read
from ropewalk.config.published import published_models
from ropewalk.config.scaled_fields import expected_scalings
from ropewalk.errors import UnsupportedModelError
from ropewalk.planning import compute_kv_cache_bytes, plan
from ropewalk.serving.planned_changes import find_planned_changes

SMOLLM2 = {
    "model_type": "llama",
    "hidden_size": 576,
    "num_attention_heads": 9,
    "num_key_value_heads": 3,
    "num_hidden_layers": 30,
    "max_position_embeddings": 8192,
    "rope_theta": 100_000.0,
    "dtype": "bfloat16",
}
LLAMA_3_1 = {
    **SMOLLM2,
    "max_position_embeddings": 131_072,
    "rope_parameters": {
        "rope_type": "llama3",
        "rope_theta": 500_000.0,
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    },
}
LINEAR = {**SMOLLM2, "rope_scaling": {"type": "linear", "factor": 2.0}}
YARN = {**SMOLLM2, "rope_scaling": {"type": "yarn", "factor": 2.0, "beta_fast": 16}}
GEMMA_3 = {
    **SMOLLM2,
    "model_type": "gemma3_text",
    "head_dim": 64,
    "max_position_embeddings": 131_072,
    "rope_theta": 1_000_000.0,
    "rope_local_base_freq": 10_000.0,
    "sliding_window": 1024,
    "rope_scaling": {"rope_type": "linear", "factor": 8.0},
}
MODELS = {"SmolLM2": SMOLLM2, "linear": LINEAR, "yarn": YARN, "Llama 3.1": LLAMA_3_1, "Gemma 3": GEMMA_3}


@pytest.mark.parametrize("target", [1, 4096, 8192])
def test_target_within_the_current_length_needs_no_scaling(target):
    result = plan(SMOLLM2, target)
    assert not result.needed
    assert result.scaling == rw.NoScaling()
    assert result.rope_parameters is None
    assert result.max_position_embeddings == 8192
    assert f"the target is {target:,}" in result.reasons[0]


@pytest.mark.parametrize(
    ("target", "factor"),
    [
        (8193, 1.5),  # 1.0001 x 1.25 = 1.2502, rounded up to a quarter
        (12_000, 2.0),  # 1.4648 x 1.25 = 1.831
        (16_384, 2.5),  # 2 x 1.25
        (32_768, 5.0),
        (131_072, 20.0),
    ],
)
def test_factor_is_the_length_ratio_times_the_margin(target, factor):
    result = plan(SMOLLM2, target)
    assert result.needed
    assert result.scaling == rw.YaRN(factor=factor)
    assert result.max_position_embeddings == 8192 * factor
    assert result.original_length == 8192
    assert result.rope_parameters["rope_type"] == "yarn"
    assert result.rope_parameters["factor"] == factor
    assert result.rope_parameters["rope_theta"] == 100_000.0
    assert result.rope_parameters["original_max_position_embeddings"] == 8192


def effective_length(result):
    """Return the length that readers of the configuration derive; for a linear scaling they multiply the field."""
    is_multiplied = isinstance(result.scaling, rw.Linear) and result.max_position_embeddings == result.original_length
    return result.max_position_embeddings * (result.scaling.factor if is_multiplied else 1)


@pytest.mark.parametrize(
    ("config", "current_length", "target", "scaling"),
    [
        (LINEAR, 16_384, 32_768, rw.Linear(factor=5)),  # 2 x (2 x 1.25)
        (YARN, 16_384, 20_000, rw.YaRN(factor=3.5, beta_fast=16)),  # 2 x (1.2207 x 1.25 = 1.526, so 1.75)
        (LLAMA_3_1, 131_072, 262_144, rw.Llama3(factor=20, low_freq_factor=1, high_freq_factor=4)),  # 8 x (2 x 1.25)
    ],
    ids=["linear", "yarn", "llama3"],
)
def test_scaled_model_keeps_its_method_with_a_larger_factor(config, current_length, target, scaling):
    unchanged = plan(config, current_length)
    assert not unchanged.needed
    assert unchanged.scaling == read(config).ropes["all"].scaling
    result = plan(config, target)
    assert result.needed
    assert result.scaling == scaling
    assert effective_length(result) >= target
    assert any("its factor grown" in reason for reason in result.reasons)


@pytest.mark.parametrize("target", [8193, 20_000, 100_000, 1_048_576])
@pytest.mark.parametrize("name", MODELS)
def test_planned_configuration_is_read_back_and_covers_the_target(name, target):
    config = MODELS[name]
    result = plan(config, target)
    assert effective_length(result) >= target
    if not result.needed:
        return
    changed = {key: value for key, value in config.items() if key not in ("rope_scaling", "rope_local_base_freq")}
    changed |= {
        "rope_parameters": result.rope_parameters,
        "max_position_embeddings": result.max_position_embeddings,
    }
    reread = read(AutoConfig.for_model(**changed))
    assert reread.main_layer.scaling == result.scaling
    assert (
        reread.main_layer.rope.base
        == result.rope_parameters.get("full_attention", result.rope_parameters)["rope_theta"]
    )
    assert not plan(reread, target).needed


def test_other_layer_types_keep_their_rope_dicts():
    result = plan(GEMMA_3, 262_144)
    assert result.scaling == rw.Linear(factor=20)  # 8 x (2 x 1.25), over the 16,384 it was trained on
    assert result.rope_parameters["full_attention"]["factor"] == 20
    assert result.rope_parameters["sliding_attention"]["rope_theta"] == 10_000.0


def test_rope_parameters_keep_the_keys_of_the_model():
    config = StableLmConfig(
        hidden_size=128,
        num_attention_heads=2,
        max_position_embeddings=1024,
        rope_parameters={"rope_theta": 1e4, "rope_type": "default", "partial_rotary_factor": 0.5},
    )
    assert plan(config, 4096).rope_parameters["partial_rotary_factor"] == 0.5


def test_tutorial_formulas_are_never_chosen():
    names = {plan(config, 2**power).scaling.name for config in (SMOLLM2, LINEAR, YARN) for power in range(10, 24)}
    assert names == {"none", "linear", "yarn"}


def test_kv_cache_with_grouped_query_attention():
    # 30 layers x 3 heads x (64 + 64) x 2 bytes = 23,040 bytes per token
    assert plan(SMOLLM2, 1000).kv_cache_bytes == 23_040_000
    assert plan({**SMOLLM2, "dtype": "float32"}, 1000).kv_cache_bytes == 46_080_000


def test_kv_cache_with_sliding_window_layers():
    # A full layer caches 10,000 tokens, a sliding one 512. 2 heads x (64 + 64) x 2 bytes = 512 bytes per token.
    full, sliding = LayerShape("full_attention", 2, 64, 64), LayerShape("sliding_attention", 2, 64, 64, window=512)
    shape = AttentionShape((full, sliding, sliding), bytes_per_number=2)
    assert compute_kv_cache_bytes(shape, 10_000) == (10_000 + 512 + 512) * 512
    assert compute_kv_cache_bytes(shape, 100) == 300 * 512


def test_kv_cache_with_a_sliding_window_pattern():
    # Gemma 3: every sixth of 30 layers attends to the whole text: 5 x 10,000 + 25 x 1,024 tokens of 768 bytes
    assert plan(GEMMA_3, 10_000).kv_cache_bytes == (5 * 10_000 + 25 * 1024) * 768


def test_kv_cache_with_latent_attention():
    # DeepSeek-V3: 61 layers x (512 latent + 64 rope) x 2 bytes = 70,272 bytes per token, independent of the heads
    config = {**SMOLLM2, "num_hidden_layers": 61, "kv_lora_rank": 512, "qk_rope_head_dim": 64}
    assert plan(config, 1000).kv_cache_bytes == 70_272_000


def test_layers_without_a_kv_cache_count_as_0():
    config = {**SMOLLM2, "num_hidden_layers": 4, "layer_types": ["linear_attention", "mamba", "conv", "full_attention"]}
    assert plan(config, 1000).kv_cache_bytes == 1000 * 3 * (64 + 64) * 2


def test_kv_cache_is_none_without_sizes_in_the_configuration():
    assert plan({"rope_theta": 1e4, "head_dim": 64, "max_position_embeddings": 2048}, 4096).kv_cache_bytes is None


@pytest.mark.parametrize("target", [4096, 100_000])
@pytest.mark.parametrize("name", MODELS)
def test_plan_converts_to_json(name, target):
    result = plan(MODELS[name], target)
    document = json.loads(json.dumps(result.to_dict()))
    assert rw.parse(document["scaling"]) == result.scaling
    assert rw.parse(document["spec"]) == result.scaling
    assert document["reasons"] == list(result.reasons)
    assert document["target"] == target


@pytest.mark.parametrize("target", [0, -1, 4096.0, "4096", True, None, math.inf])
def test_invalid_target_raises_input_error(target):
    with pytest.raises(rw.InputError, match=r"^target: got .*; expected a whole number of tokens"):
        plan(SMOLLM2, target)


def test_model_without_an_original_length_raises_input_error():
    with pytest.raises(rw.InputError, match=r"^original_length: got None"):
        plan({"rope_theta": 1e4, "head_dim": 64}, 4096)


# name in tests/real_configs, target, planned scaling, declared length
PLANNED_CASES = {
    "olmo3_7b": (262_144, rw.YaRN(factor=40), 327_680),
    "mimo": (524_288, rw.YaRN(factor=2.5), 655_360),
    "qwen3_next": (1_048_576, rw.YaRN(factor=4, original_length=262_144), 1_048_576),
    "gemma3_27b": (524_288, rw.Linear(factor=40), 655_360),
    "gemma4_31b": (1_048_576, rw.Proportional(p=0.25, factor=5), 262_144),
    "dsv4": (2_097_152, rw.YaRN(factor=40, attention_factor=1.0), 2_621_440),
    "step35": (1_048_576, rw.Llama3(factor=10, low_freq_factor=1, high_freq_factor=32), 1_310_720),
    "step37": (1_048_576, rw.Llama3(factor=10, low_freq_factor=1, high_freq_factor=32), 1_310_720),
    "mixtral_yarn": (262_144, rw.YaRN(factor=10), 327_680),
    "qwen3vl_top": (1_048_576, rw.YaRN(factor=3, original_length=262_144), 1_048_576),
}


@pytest.mark.parametrize("name", PLANNED_CASES)
def test_plan_of_a_real_configuration(name):
    target, scaling, declared_length = PLANNED_CASES[name]
    result = plan(str(real_config_path(name)), target)
    assert result.scaling == scaling
    assert result.max_position_embeddings == declared_length
    assert "{}" not in json.dumps(result.rope_parameters)


@pytest.mark.parametrize("name", PLANNED_CASES)
def test_planned_changes_of_a_real_configuration_are_read_as_planned(name):
    path = str(real_config_path(name))
    result = plan(path, PLANNED_CASES[name][0])
    config = copy.deepcopy(load_real_config(name))
    merge(config, find_planned_changes(path, result))
    before, after = read(load_real_config(name)), read(config)
    assert before.ropes.keys() == after.ropes.keys()
    for layer_type, scaling in expected_scalings(before, result.scaling).items():
        expected = compute_layer_frequencies(scaling, before.ropes[layer_type], None)
        actual = compute_layer_frequencies(after.ropes[layer_type].scaling, after.ropes[layer_type], None)
        np.testing.assert_allclose(actual.inv_freq, expected.inv_freq, rtol=1e-12)
        assert actual.attention_factor == pytest.approx(expected.attention_factor, rel=1e-12)
    assert not plan(config, PLANNED_CASES[name][0]).needed


def merge(config, changes):
    """Merge changes into a config.json; None removes a field."""
    for key, value in changes.items():
        if key == "text_config":
            merge(config[key], value)
        elif value is None:
            config.pop(key, None)
        else:
            config[key] = value


def test_stored_attention_factor_that_equals_the_formula_follows_the_factor():
    # olmo3_7b stores 0.1 ln 8 + 1 = 1.20794
    result = plan(load_real_config("olmo3_7b"), 262_144)
    rope = read(load_real_config("olmo3_7b")).main_layer.rope
    assert result.scaling.frequencies(rope).attention_factor == pytest.approx(0.1 * math.log(40) + 1)
    assert 0.1 * math.log(40) + 1 == pytest.approx(1.36889, abs=5e-6)
    assert "attention_factor" not in result.rope_parameters["full_attention"]


@pytest.mark.parametrize("attention_factor", [1.0, 1.2])
def test_attention_factor_that_is_a_choice_is_kept(attention_factor):
    rope_scaling = {"type": "yarn", "factor": 8.0, "attention_factor": attention_factor}
    assert plan({**SMOLLM2, "rope_scaling": rope_scaling}, 131_072).scaling.attention_factor == attention_factor


def test_mimo_gets_a_rope_dict_for_each_layer_type():
    rope_parameters = plan(load_real_config("mimo"), 524_288).rope_parameters
    assert rope_parameters["full_attention"]["rope_type"] == "yarn"
    assert rope_parameters["full_attention"]["rope_theta"] == 5_000_000
    assert rope_parameters["sliding_attention"]["rope_type"] == "default"
    assert rope_parameters["sliding_attention"]["rope_theta"] == 10_000


def test_only_the_compressed_layers_of_dsv4_are_scaled():
    rope_parameters = plan(load_real_config("dsv4"), 2_097_152).rope_parameters
    assert rope_parameters["compress"]["factor"] == 40
    assert rope_parameters["compress"]["rope_theta"] == 160_000
    assert rope_parameters["main"]["rope_type"] == "default"
    assert rope_parameters["main"]["rope_theta"] == 10_000


def test_changes_of_a_multimodal_model_are_nested_under_text_config():
    path = str(real_config_path("gemma3_27b"))
    assert list(find_planned_changes(path, plan(path, 524_288))) == ["text_config"]


@pytest.mark.parametrize("target", [262_144, 524_288, 1_000_000, 1_048_576])
def test_qwen3_vl_is_planned_as_its_makers_recommend(target):
    unscaled = load_real_config("qwen3vl_card")
    unscaled["text_config"]["max_position_embeddings"] = 262_144
    rope_scaling = unscaled["text_config"]["rope_scaling"]
    unscaled["text_config"]["rope_scaling"] = {
        key: value for key, value in rope_scaling.items() if key.startswith("mrope")
    }
    result = plan(unscaled, target)
    assert result.needed == (target > 262_144)
    assert getattr(result.scaling, "factor", 1) <= 3
    assert result.max_position_embeddings >= target
    assert not plan(load_real_config("qwen3vl_card"), target).needed


def test_plan_says_that_qwen25_1m_relies_on_dual_chunk_attention():
    config = load_real_config("qwen25_1m")
    assert not any("dual chunk" in reason for reason in plan(config, 262_144).reasons)
    for target in (524_288, 2_097_152):
        assert any(
            "past 262,144 tokens the model relies on dual chunk" in reason for reason in plan(config, target).reasons
        )


def test_plan_names_a_position_method_as_an_alternative():
    def alternatives(config, target):
        return [reason for reason in plan(config, target).reasons if "leaky-rerope" in reason]

    assert not alternatives(load_real_config("qwen3_30b_a3b_yarn"), 1024)
    [reason] = alternatives(LLAMA_3_1, 262_144)
    assert "texts of up to 131,072 tokens as they are" in reason
    assert "fewer than 65,536 tokens back keep their distance" in reason
    assert "grow 3 times more slowly" in reason  # (262,144 - 65,536) / (131,072 - 65,536)
    assert not alternatives(load_real_config("dyn_trained"), 10**6)  # its frequencies follow the text
    assert not alternatives(load_real_config("qwen25_1m"), 2 * 2**20)  # dual-chunk is named instead


def test_granite4_h_has_no_rotary_embedding():
    with pytest.raises(UnsupportedModelError, match="position_embedding_type"):
        plan(load_real_config("granite4_h"), 262_144)


@pytest.mark.parametrize("name", ["llama4s", "exaone4_32b", "command_a"])
def test_no_scaling_extends_a_model_whose_full_attention_has_no_rotary_embedding(name):
    config = load_real_config(name)
    assert not plan(config, 65_536).needed
    with pytest.raises(UnsupportedModelError, match="no rotary embedding, so no scaling extends it"):
        plan(config, 16_777_216)


def test_alpha_of_hunyuan_grows():
    config = load_real_config("hunyuan_alpha")  # trained with base 10,000 x 1000^(128/126)
    trained, result = read(config).main_layer, plan(config, 1_048_576)
    slowest = compute_layer_frequencies(trained.scaling, trained, None).inv_freq[-1]
    assert slowest == pytest.approx(1.15478e-7, rel=1e-5)
    assert result.scaling.frequencies(trained.rope).inv_freq[-1] == pytest.approx(slowest / 5)


def test_lists_without_a_factor_are_extended_from_their_slowest_frequency(tmp_path):
    # Llama 3.1 as a GGUF file: 131,072 declared tokens, with divisors up to 8
    divisors = {"rope_freqs.weight": [1.0] * 16 + [8.0] * 16}
    path = small_gguf(tmp_path / "llama.gguf", {"context_length": 131_072}, divisors)
    result = plan(str(path), 262_144)
    assert result.scaling == rw.YaRN(factor=20, original_length=16_384)
    assert result.max_position_embeddings == 20 * 16_384


def test_lists_without_a_factor_are_extended_from_the_declared_length(tmp_path):
    # Phi-3 as a GGUF file: trained on 4,096 tokens, with lists for 131,072
    lists = {"rope_factors_short.weight": [1.0] * 32, "rope_factors_long.weight": [1.0 + i for i in range(32)]}
    fields = {"context_length": 131_072, "rope.scaling.original_context_length": 4096}
    path = small_gguf(tmp_path / "phi3.gguf", fields, lists, architecture="phi3")
    result = plan(str(path), 262_144)
    assert result.scaling == rw.YaRN(factor=80)  # 32 x (2 x 1.25)
    assert result.max_position_embeddings == 80 * 4096


def test_plan_of_gemma3_27b_good_gguf():
    path = str(real_config_path("gemma3_27b_good.gguf"))
    result = plan(path, 524_288)
    assert "reads 131,072 tokens" in result.reasons[0]
    assert result.scaling == rw.Linear(factor=40)
    assert result.rope_parameters["sliding_attention"] == {"rope_theta": 10_000.0, "rope_type": "default"}
    changes = find_planned_changes(path, result)
    assert changes["gemma3.rope.scaling.factor"] == 40.0
    assert changes["gemma3.context_length"] == 655_360


def test_changes_of_a_gguf_file_are_its_fields():
    path = str(real_config_path("qwen35moe.gguf"))
    assert find_planned_changes(path, plan(path, 1_048_576)) == {
        "qwen35moe.rope.scaling.type": "yarn",
        "qwen35moe.rope.scaling.factor": 5.0,
        "qwen35moe.rope.scaling.original_context_length": 262_144,
        "qwen35moe.context_length": 1_310_720,
    }


def test_plan_that_changes_nothing_has_no_changes():
    path = str(real_config_path("qwen3_next"))
    assert find_planned_changes(path, plan(path, 131_072)) == {}


def test_plan_that_the_doctor_finds_wrong_is_refused(tmp_path):
    # A planned length below the target, as a fault in the plan would give it.
    (tmp_path / "config.json").write_text(json.dumps(SMOLLM2))
    planned = dataclasses.replace(plan(SMOLLM2, 32_768), scaling=rw.YaRN(factor=2))
    with pytest.raises(rw.InputError, match="expected a configuration without"):
        find_planned_changes(str(tmp_path), planned)


def test_plan_that_no_field_expresses_is_refused():
    config = {**SMOLLM2, "model_type": "recurrent_gemma"}
    with pytest.raises(rw.InputError, match=r"^model: got 'recurrent_gemma'; expected an architecture"):
        plan(config, 131_072)


# Their rotary layers attend to a window, and the other layers have no rotary embedding.
NOT_EXTENDED_BY_SCALING = {
    "LGAI-EXAONE/EXAONE-4.0-32B",
    "LGAI-EXAONE/EXAONE-4.5-33B",
    "meta-llama/Llama-4-Maverick-17B-128E-Instruct",
    "meta-llama/Llama-4-Scout-17B-16E-Instruct",
}


@pytest.mark.parametrize("name", published_models())
def test_plan_of_a_published_model_passes_its_checks(name, tmp_path):
    config = published_models()[name].config
    (tmp_path / "config.json").write_text(json.dumps(config))
    target = 2 * plan(config, 1).max_position_embeddings
    if name in NOT_EXTENDED_BY_SCALING:
        with pytest.raises(UnsupportedModelError, match="no scaling extends it"):
            plan(config, target)
        return
    planned = plan(config, target)
    assert planned.needed
    assert find_planned_changes(str(tmp_path), planned)
