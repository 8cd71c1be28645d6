"""Plans: the chosen method and factor, the resulting configuration, and the memory of the KV cache."""

import json
import math

import pytest
from transformers import AutoConfig, LlamaConfig

import ropewalk as rw
from ropewalk.config import AttentionShape, LayerShape, read
from ropewalk.planning import compute_kv_cache_bytes, plan

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
    config = LlamaConfig(
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
