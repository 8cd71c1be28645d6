"""Configurations as they are published: read to what their authors meant, and to what transformers makes of them."""

import copy
import json

import pytest
from transformers import AutoConfig

import ropewalk as rw
from ropewalk import config as configs
from ropewalk.config import read
from ropewalk.config.architectures import DEFAULT_PARTIAL_ROTARY_FACTOR, DEFAULT_ROPE_THETA

LLAMA_2 = {
    "model_type": "llama",
    "hidden_size": 4096,
    "num_attention_heads": 32,
    "num_hidden_layers": 32,
    "max_position_embeddings": 4096,
}  # no rope field at all
LLAMA_3_1 = {
    **LLAMA_2,
    "num_key_value_heads": 8,
    "max_position_embeddings": 131_072,
    "rope_theta": 500_000.0,
    "rope_scaling": {
        "rope_type": "llama3",
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    },
}
QWEN_2_5 = {
    "model_type": "qwen2",
    "hidden_size": 3584,
    "num_attention_heads": 28,
    "num_key_value_heads": 4,
    "num_hidden_layers": 28,
    "max_position_embeddings": 32_768,
    "rope_theta": 1_000_000.0,
    "sliding_window": 131_072,
    "use_sliding_window": False,
    "rope_scaling": {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32_768},
}
QWEN_2_VL = {
    **QWEN_2_5,
    "model_type": "qwen2_vl_text",
    "rope_scaling": {"type": "mrope", "mrope_section": [16, 24, 24]},
}
DEEPSEEK_V3 = {
    "model_type": "deepseek_v3",
    "hidden_size": 7168,
    "num_attention_heads": 128,
    "num_key_value_heads": 128,
    "num_hidden_layers": 61,
    "kv_lora_rank": 512,
    "qk_rope_head_dim": 64,
    "qk_nope_head_dim": 128,
    "v_head_dim": 128,
    "max_position_embeddings": 163_840,
    "rope_theta": 10_000,
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
SHORT, LONG = [1.0 + i / 100 for i in range(48)], [1.0 + i for i in range(48)]
PHI_3 = {
    "model_type": "phi3",
    "hidden_size": 3072,
    "num_attention_heads": 32,
    "num_key_value_heads": 32,
    "num_hidden_layers": 32,
    "max_position_embeddings": 131_072,
    "original_max_position_embeddings": 4096,
    "rope_theta": 10_000.0,
    "pad_token_id": 0,
    "rope_scaling": {"type": "longrope", "short_factor": SHORT, "long_factor": LONG},
}
PYTHIA = {
    "model_type": "gpt_neox",
    "hidden_size": 768,
    "num_attention_heads": 12,
    "num_hidden_layers": 12,
    "max_position_embeddings": 2048,
    "rotary_pct": 0.25,
    "rotary_emb_base": 10_000,
}
STABLELM = {
    "model_type": "stablelm",
    "hidden_size": 2560,
    "num_attention_heads": 32,
    "num_hidden_layers": 32,
    "max_position_embeddings": 4096,
    "partial_rotary_factor": 0.5,
    "rope_theta": 20_000,
}
GPT_OSS = {
    "model_type": "gpt_oss",
    "head_dim": 64,
    "hidden_size": 2880,
    "num_attention_heads": 64,
    "num_key_value_heads": 8,
    "num_hidden_layers": 4,
    "max_position_embeddings": 131_072,
    "rope_theta": 150_000,
    "rope_scaling": {
        "rope_type": "yarn",
        "factor": 32.0,
        "beta_fast": 32.0,
        "beta_slow": 1.0,
        "truncate": False,
        "original_max_position_embeddings": 4096,
    },
}
LONGCHAT = {**LLAMA_2, "rope_scaling": {"type": "linear", "factor": 8.0}}
DYNAMIC = {**LLAMA_2, "rope_scaling": {"type": "dynamic", "factor": 2.0}}

PUBLISHED = {
    "Llama 2": (LLAMA_2, rw.Rope(128, 10_000, 4096), rw.NoScaling()),
    "Llama 3.1": (LLAMA_3_1, rw.Rope(128, 500_000, 8192), rw.Llama3(8, 1, 4)),
    "Qwen 2.5": (QWEN_2_5, rw.Rope(128, 1_000_000, 32_768), rw.YaRN(4)),
    "Qwen 2 VL": (QWEN_2_VL, rw.Rope(128, 1_000_000, 32_768), rw.NoScaling()),
    "DeepSeek V3": (DEEPSEEK_V3, rw.Rope(64, 10_000, 4096, "interleaved"), rw.YaRN(40, mscale=1, mscale_all_dim=1)),
    # its factor is 131072 / 4096, which no field says
    "Phi 3": (PHI_3, rw.Rope(96, 10_000, 4096), rw.LongRoPE(SHORT, LONG, factor=32)),
    "Pythia": (PYTHIA, rw.Rope(16, 10_000, 2048), rw.NoScaling()),
    "StableLM": (STABLELM, rw.Rope(40, 20_000, 4096), rw.NoScaling()),
    "gpt-oss": (GPT_OSS, rw.Rope(64, 150_000, 4096), rw.YaRN(32, truncate=False)),
    "LongChat": (LONGCHAT, rw.Rope(128, 10_000, 4096), rw.Linear(8)),
    "dynamic": (DYNAMIC, rw.Rope(128, 10_000, 4096), rw.DynamicNTK(2)),
}


def of_transformers(written):
    """Its config object, which writes into the dicts it is given: hence the copy."""
    return AutoConfig.for_model(**copy.deepcopy(written))


@pytest.mark.parametrize("name", PUBLISHED)
def test_transformers_4(name):
    written, rope, scaling = PUBLISHED[name]
    found = read(written)
    assert found.ropes == {"all": configs.LayerRope(rope, scaling)}
    assert found.max_length == written["max_position_embeddings"]
    assert found.model_type == written["model_type"]


@pytest.mark.parametrize("name", PUBLISHED)
def test_transformers_5_object_and_dict(name):
    written, rope, scaling = PUBLISHED[name]
    config = of_transformers(written)
    assert config.to_dict()["rope_parameters"]["rope_theta"] == rope.base  # transformers 5 says it in one place
    assert read(config).ropes == {"all": configs.LayerRope(rope, scaling)}
    assert read(config.to_dict()) == read(config)


GEMMA_3 = {
    "model_type": "gemma3_text",
    "head_dim": 256,
    "hidden_size": 2560,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "num_hidden_layers": 34,
    "max_position_embeddings": 131_072,
    "rope_theta": 1_000_000.0,
    "rope_local_base_freq": 10_000.0,
    "sliding_window": 1024,
    "sliding_window_pattern": 6,
    "rope_scaling": {"rope_type": "linear", "factor": 8.0},
}


def test_a_sliding_window_that_is_not_used_is_none():
    found = read(QWEN_2_5).attention
    assert found.sliding_window is None
    assert set(found.layer_types) == {"full_attention"}
    used = read({**QWEN_2_5, "use_sliding_window": True, "sliding_window": 4096}).attention
    assert used.sliding_window == 4096
    assert set(used.layer_types) == {"sliding_attention"}


def test_the_first_name_of_longrope():
    renamed = {**PHI_3, "rope_scaling": {"type": "su", "short_factor": SHORT, "long_factor": LONG}}
    assert read(renamed) == read(PHI_3)


def test_layer_types_with_ropes_of_their_own():
    found = read(GEMMA_3)
    # It declares 131,072 with its scaling, so it was trained on 131,072 / 8 without.
    assert found.ropes["full_attention"] == configs.LayerRope(rw.Rope(256, 1_000_000, 16_384), rw.Linear(8))
    assert found.ropes["sliding_attention"] == configs.LayerRope(rw.Rope(256, 10_000, 131_072), rw.NoScaling())
    assert found.main_layer_type == "full_attention"
    assert found.attention.layer_types.count("full_attention") == 5  # layers 6, 12, 18, 24 and 30 of 34
    assert found.attention.layer_types[5] == "full_attention"


def test_transformers_nests_them():
    config = of_transformers(GEMMA_3)
    assert set(config.rope_parameters) == {"full_attention", "sliding_attention"}
    assert read(config) == read(GEMMA_3)


def test_layer_types_with_heads_of_their_own():
    config = AutoConfig.for_model("gemma4_text")
    found = read(config)
    # As in transformers: heads of 256 where a layer slides, 512 where it sees everything, a quarter of which turn.
    assert found.ropes["sliding_attention"].rope.dim == 256
    assert found.ropes["full_attention"].rope.dim == 512
    assert found.ropes["full_attention"].scaling == rw.Proportional(p=0.25)
    # and as it was published
    raw = {**config.to_dict(), "global_head_dim": 512}
    del raw["per_layer_config"]
    assert read(raw).ropes == found.ropes


def test_composite_configurations_are_read_at_their_text_part():
    llava = {"model_type": "llava", "vision_config": {"hidden_size": 1024}, "text_config": LLAMA_3_1}
    omni = {"model_type": "qwen2_5_omni", "thinker_config": {"text_config": QWEN_2_5}}
    assert read(llava) == read(LLAMA_3_1)
    assert read(omni) == read(QWEN_2_5)
    config = of_transformers({"model_type": "llava", "text_config": LLAMA_3_1})
    assert read(config).ropes == read(LLAMA_3_1).ropes
    assert read(config.to_dict()) == read(config)


@pytest.mark.parametrize("model_type", [*DEFAULT_ROPE_THETA, *DEFAULT_PARTIAL_ROTARY_FACTOR])
def test_defaults_of_architectures_are_those_of_transformers(model_type):
    heads = {"num_attention_heads": 8, "num_key_value_heads": 4, "num_hidden_layers": 2}
    bare = {"hidden_size": 1024, "max_position_embeddings": 2048, **heads}
    if model_type != "falcon":  # a property there
        bare["head_dim"] = 128
    config = AutoConfig.for_model(model_type, **bare)
    if model_type not in DEFAULT_ROPE_THETA:
        bare["rope_theta"] = 10_000.0
    ours, theirs = (each.main_layer.rope for each in (read({"model_type": model_type, **bare}), read(config)))
    assert ours.base == theirs.base
    if model_type in DEFAULT_PARTIAL_ROTARY_FACTOR:
        assert ours.dim == theirs.dim


def test_what_can_be_given():
    class Model:
        config = of_transformers(LLAMA_2)

    wanted = read(LLAMA_2)
    assert read(wanted) is wanted
    assert read(Model.config) == wanted
    assert read(Model()) == wanted


def test_a_file_and_a_folder(tmp_path):
    file = tmp_path / "config.json"
    file.write_text(json.dumps(PHI_3))
    for source in (file, str(file), tmp_path, str(tmp_path)):
        assert read(source) == read(PHI_3)


def test_the_top_level_original_length_wins_as_in_transformers():
    both = {**PHI_3, "rope_scaling": {**PHI_3["rope_scaling"], "original_max_position_embeddings": 8192}}
    assert read(both).ropes["all"].rope.original_length == 4096
    assert read(of_transformers(both)).ropes["all"].rope.original_length == 4096


def test_without_an_original_length_the_declared_one_counts():
    bare = {**QWEN_2_5, "rope_scaling": {"type": "yarn", "factor": 4.0}}
    assert read(bare).ropes["all"].rope.original_length == 32_768


def test_rope_parameters_keep_what_is_the_models_own():
    layer = read(LLAMA_3_1).ropes["all"]
    written = {"rope_type": "default", "partial_rotary_factor": 0.5, "mrope_section": [16, 24, 24]}
    written |= {"factor": 9.0, "beta_fast": 16}  # of the scaling that goes
    assert configs.build_rope_parameters(rw.Linear(2), layer.rope, written) == {
        "rope_type": "linear",
        "rope_theta": 500_000.0,
        "factor": 2.0,
        "partial_rotary_factor": 0.5,
        "mrope_section": [16, 24, 24],
    }


def test_the_p_of_a_proportional_model_is_not_its_rotary_dimension():
    rope = rw.Rope(64, 10_000, 1024)
    own = {"rope_type": "proportional", "partial_rotary_factor": 0.25}
    assert "partial_rotary_factor" not in configs.build_rope_parameters(rw.Linear(2), rope, own)
    assert configs.build_rope_parameters(rw.Proportional(p=0.5), rope, own)["partial_rotary_factor"] == 0.5
    # Of another model that field is the rotary dimension, and then the one field cannot say both.
    assert configs.build_rope_parameters(rw.Proportional(p=0.5), rope, {"partial_rotary_factor": 0.25}) is None
