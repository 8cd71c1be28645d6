import json
import math

import pytest
from transformers import AutoConfig, LlamaConfig

import ropewalk as rw
from ropewalk.config import AttentionShape, read
from ropewalk.planning import kv_cache_bytes, plan

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
def test_a_target_that_the_model_reads_needs_nothing(target):
    found = plan(SMOLLM2, target)
    assert not found.needed
    assert found.scaling == rw.NoScaling()
    assert found.rope_parameters is None
    assert found.max_position_embeddings == 8192
    assert f"the target is {target:,}" in found.reasons[0]


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
def test_the_factor_is_the_ratio_with_a_margin(target, factor):
    found = plan(SMOLLM2, target)
    assert found.needed
    assert found.scaling == rw.YaRN(factor=factor)
    assert found.max_position_embeddings == 8192 * factor
    assert found.original_length == 8192
    assert found.rope_parameters["rope_type"] == "yarn"
    assert found.rope_parameters["factor"] == factor
    assert found.rope_parameters["rope_theta"] == 100_000.0
    assert found.rope_parameters["original_max_position_embeddings"] == 8192


def declared(found):
    """The length that readers of the configuration take from it: of a linear scaling they multiply the field."""
    multiplied = isinstance(found.scaling, rw.Linear) and found.max_position_embeddings == found.original_length
    return found.max_position_embeddings * (found.scaling.factor if multiplied else 1)


@pytest.mark.parametrize(
    ("config", "reads", "target", "scaling"),
    [
        (LINEAR, 16_384, 32_768, rw.Linear(factor=5)),  # 2 x (2 x 1.25)
        (YARN, 16_384, 20_000, rw.YaRN(factor=3.5, beta_fast=16)),  # 2 x (1.2207 x 1.25 = 1.526, so 1.75)
        (LLAMA_3_1, 131_072, 262_144, rw.Llama3(factor=20, low_freq_factor=1, high_freq_factor=4)),  # 8 x (2 x 1.25)
    ],
    ids=["linear", "yarn", "llama3"],
)
def test_a_model_with_a_scaling_keeps_its_method_and_grows_the_factor(config, reads, target, scaling):
    as_it_is = plan(config, reads)
    assert not as_it_is.needed
    assert as_it_is.scaling == read(config).ropes["all"].scaling
    found = plan(config, target)
    assert found.needed
    assert found.scaling == scaling
    assert declared(found) >= target
    assert any("its factor grown" in reason for reason in found.reasons)


@pytest.mark.parametrize("target", [8193, 20_000, 100_000, 1_048_576])
@pytest.mark.parametrize("name", MODELS)
def test_what_is_planned_reaches_the_target_and_transformers_reads_it_so(name, target):
    config = MODELS[name]
    found = plan(config, target)
    assert declared(found) >= target
    if not found.needed:
        return
    changed = {key: value for key, value in config.items() if key not in ("rope_scaling", "rope_local_base_freq")}
    changed |= {
        "rope_parameters": found.rope_parameters,
        "max_position_embeddings": found.max_position_embeddings,
    }
    again = read(AutoConfig.for_model(**changed))
    assert again.main_layer.scaling == found.scaling
    assert (
        again.main_layer.rope.base == found.rope_parameters.get("full_attention", found.rope_parameters)["rope_theta"]
    )
    assert not plan(again, target).needed


def test_layer_types_keep_their_ropes():
    found = plan(GEMMA_3, 262_144)
    assert found.scaling == rw.Linear(factor=20)  # 8 x (2 x 1.25), over the 16,384 it was trained on
    assert found.rope_parameters["full_attention"]["factor"] == 20
    assert found.rope_parameters["sliding_attention"]["rope_theta"] == 10_000.0


def test_what_is_the_models_own_stays_in_the_rope_parameters():
    config = LlamaConfig(
        hidden_size=128,
        num_attention_heads=2,
        max_position_embeddings=1024,
        rope_parameters={"rope_theta": 1e4, "rope_type": "default", "partial_rotary_factor": 0.5},
    )
    assert plan(config, 4096).rope_parameters["partial_rotary_factor"] == 0.5


def test_the_tutorial_formulas_are_never_planned():
    names = {plan(config, 2**power).scaling.name for config in (SMOLLM2, LINEAR, YARN) for power in range(10, 24)}
    assert names == {"none", "linear", "yarn"}


def test_kv_cache_of_grouped_heads():
    # 30 layers x 3 heads x (64 + 64) x 2 bytes = 23,040 bytes a token
    assert plan(SMOLLM2, 1000).kv_cache_bytes == 23_040_000
    assert plan({**SMOLLM2, "dtype": "float32"}, 1000).kv_cache_bytes == 46_080_000


def test_kv_cache_of_sliding_layers():
    # A full layer keeps 10,000 tokens, a sliding one 512; 2 heads x (64 + 64) x 2 bytes = 512 bytes a token.
    kinds = ("full_attention", "sliding_attention", "sliding_attention")
    shape = AttentionShape(kinds, kv_heads=2, key_dim=64, value_dim=64, sliding_window=512, bytes_per_number=2)
    assert kv_cache_bytes(shape, 10_000) == (10_000 + 512 + 512) * 512
    assert kv_cache_bytes(shape, 100) == 300 * 512


def test_kv_cache_of_sliding_layers_by_their_pattern():
    # Gemma 3: every sixth of 30 layers sees everything: 5 x 10,000 + 25 x 1,024 tokens of 768 bytes
    assert plan(GEMMA_3, 10_000).kv_cache_bytes == (5 * 10_000 + 25 * 1024) * 768


def test_kv_cache_of_latent_attention():
    # DeepSeek-V3: 61 layers x (512 latent + 64 rope) x 2 bytes = 70,272 bytes a token, whatever the heads
    config = {**SMOLLM2, "num_hidden_layers": 61, "kv_lora_rank": 512, "qk_rope_head_dim": 64}
    assert plan(config, 1000).kv_cache_bytes == 70_272_000


def test_layers_without_a_kv_cache():
    kinds = ("linear_attention", "mamba", "conv", "full_attention")
    shape = AttentionShape(kinds, kv_heads=1, key_dim=8, value_dim=8, sliding_window=None, bytes_per_number=2)
    assert kv_cache_bytes(shape, 100) == 100 * 16 * 2


def test_without_a_shape_there_are_no_bytes():
    assert plan({"rope_theta": 1e4, "head_dim": 64, "max_position_embeddings": 2048}, 4096).kv_cache_bytes is None


@pytest.mark.parametrize("target", [4096, 100_000])
@pytest.mark.parametrize("name", MODELS)
def test_a_plan_is_json(name, target):
    found = plan(MODELS[name], target)
    shown = json.loads(json.dumps(found.to_dict()))
    assert rw.parse(shown["scaling"]) == found.scaling
    assert rw.parse(shown["spec"]) == found.scaling
    assert shown["reasons"] == list(found.reasons)
    assert shown["target"] == target


@pytest.mark.parametrize("target", [0, -1, 4096.0, "4096", True, None, math.inf])
def test_what_is_no_target(target):
    with pytest.raises(rw.InputError, match=r"^target: got .*; expected a whole number of tokens"):
        plan(SMOLLM2, target)


def test_a_model_without_an_original_length():
    with pytest.raises(rw.InputError, match=r"^original_length: got None"):
        plan({"rope_theta": 1e4, "head_dim": 64}, 4096)
