"""Configurations of transformers 4 and 5, parsed to the published values and compared with transformers."""

import copy
import json

import pytest
from transformers import AutoConfig

import ropewalk as rw
from ropewalk import config as configs
from ropewalk.config import read

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
    # Its factor is 131072 / 4096, which no field contains.
    "Phi 3": (PHI_3, rw.Rope(96, 10_000, 4096), rw.LongRoPE(SHORT, LONG, factor=32)),
    "Pythia": (PYTHIA, rw.Rope(16, 10_000, 2048), rw.NoScaling()),
    "StableLM": (STABLELM, rw.Rope(40, 20_000, 4096), rw.NoScaling()),
    "gpt-oss": (GPT_OSS, rw.Rope(64, 150_000, 4096), rw.YaRN(32, truncate=False)),
    "LongChat": (LONGCHAT, rw.Rope(128, 10_000, 4096), rw.Linear(8)),
    "dynamic": (DYNAMIC, rw.Rope(128, 10_000, 4096), rw.DynamicNTK(2)),
}


def transformers_config(config):
    """Return the config object of transformers. Its class writes into the dicts it is given, hence the copy."""
    return AutoConfig.for_model(**copy.deepcopy(config))


@pytest.mark.parametrize("name", PUBLISHED)
def test_version_4_dict_is_parsed_to_the_published_values(name):
    config, rope, scaling = PUBLISHED[name]
    result = read(config)
    assert result.ropes == {"all": configs.LayerRope(rope, scaling)}
    assert result.max_length == config["max_position_embeddings"]
    assert result.model_type == config["model_type"]


@pytest.mark.parametrize("name", PUBLISHED)
def test_version_5_object_and_dict_are_parsed_to_the_same_values(name):
    version_4, rope, scaling = PUBLISHED[name]
    config = transformers_config(version_4)
    assert config.to_dict()["rope_parameters"]["rope_theta"] == rope.base  # version 5 stores it there only
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


def test_unused_sliding_window_is_none():
    result = read(QWEN_2_5).attention
    assert {layer.window for layer in result.layers} == {None}
    assert set(result.layer_types) == {"full_attention"}
    window = {"use_sliding_window": True, "sliding_window": 4096}
    # max_window_layers is 28 by default, and the model has 28 layers.
    assert set(read({**QWEN_2_5, **window}).attention.layer_types) == {"full_attention"}
    with pytest.raises(rw.InputError, match="max_window_layers: got None; expected a whole number"):
        read({**QWEN_2_5, "model_type": "qwen2_moe", **window, "max_window_layers": None})
    used = read({**QWEN_2_5, **window, "max_window_layers": 0}).attention
    assert {layer.window for layer in used.layers} == {4096}
    assert set(used.layer_types) == {"sliding_attention"}


def test_su_is_the_former_name_of_longrope():
    renamed = {**PHI_3, "rope_scaling": {"type": "su", "short_factor": SHORT, "long_factor": LONG}}
    assert read(renamed) == read(PHI_3)


def test_gemma_3_has_one_rope_for_each_layer_type():
    result = read(GEMMA_3)
    # It declares 131,072 tokens including its scaling, so it was trained on 131,072 / 8.
    assert result.ropes["full_attention"] == configs.LayerRope(rw.Rope(256, 1_000_000, 16_384), rw.Linear(8))
    assert result.ropes["sliding_attention"] == configs.LayerRope(rw.Rope(256, 10_000, 131_072), rw.NoScaling())
    assert result.main_layer_type == "full_attention"
    assert result.attention.layer_types.count("full_attention") == 5  # layers 6, 12, 18, 24 and 30 of 34
    assert result.attention.layer_types[5] == "full_attention"


def test_nested_rope_parameters_of_version_5():
    config = transformers_config(GEMMA_3)
    assert set(config.rope_parameters) == {"full_attention", "sliding_attention"}
    assert read(config) == read(GEMMA_3)


def test_gemma_4_has_one_head_size_for_each_layer_type():
    config = AutoConfig.for_model("gemma4_text")
    result = read(config)
    # Sliding-window layers have heads of 256, the others heads of 512, a quarter of which is rotated.
    assert result.ropes["sliding_attention"].rope.dim == 256
    assert result.ropes["full_attention"].rope.dim == 512
    assert result.ropes["full_attention"].scaling == rw.Proportional(p=0.25)
    # The published file has the field global_head_dim instead.
    published = {**config.to_dict(), "global_head_dim": 512}
    del published["per_layer_config"]
    assert read(published).ropes == result.ropes


def test_multimodal_configuration_is_parsed_at_its_text_part():
    llava = {"model_type": "llava", "vision_config": {"hidden_size": 1024}, "text_config": LLAMA_3_1}
    omni = {"model_type": "qwen2_5_omni", "thinker_config": {"text_config": QWEN_2_5}}
    assert read(llava) == read(LLAMA_3_1)
    assert read(omni) == read(QWEN_2_5)
    config = transformers_config({"model_type": "llava", "text_config": LLAMA_3_1})
    assert read(config).ropes == read(LLAMA_3_1).ropes
    assert read(config.to_dict()) == read(config)


def test_an_encoder_decoder_is_parsed_at_its_decoder_as_an_object_and_as_a_dict():
    decoder = {"rope_theta": 123_456.0, "head_dim": 64, "hidden_size": 512, "max_position_embeddings": 4096}
    parsed = AutoConfig.for_model("t5gemma", decoder=decoder)
    assert read(parsed).main_layer.rope == read(parsed.to_dict()).main_layer.rope == rw.Rope(64, 123_456.0, 4096)


def test_read_accepts_a_model_a_config_object_and_a_parsed_config():
    class Model:
        config = transformers_config(LLAMA_2)

    expected = read(LLAMA_2)
    assert read(expected) is expected
    assert read(Model.config) == expected
    assert read(Model()) == expected


def test_read_accepts_a_file_and_a_folder(tmp_path):
    file = tmp_path / "config.json"
    file.write_text(json.dumps(PHI_3))
    for source in (file, str(file), tmp_path, str(tmp_path)):
        assert read(source) == read(PHI_3)


def test_top_level_original_length_takes_precedence_as_in_transformers():
    both = {**PHI_3, "rope_scaling": {**PHI_3["rope_scaling"], "original_max_position_embeddings": 8192}}
    assert read(both).ropes["all"].rope.original_length == 4096
    assert read(transformers_config(both)).ropes["all"].rope.original_length == 4096


def test_declared_length_is_the_original_length_if_none_is_given():
    bare = {**QWEN_2_5, "rope_scaling": {"type": "yarn", "factor": 4.0}}
    assert read(bare).ropes["all"].rope.original_length == 32_768


def test_rope_parameters_keep_the_keys_of_the_model():
    layer = read(LLAMA_3_1).ropes["all"]
    old_rope_dict = {"rope_type": "default", "partial_rotary_factor": 0.5, "mrope_section": [16, 24, 24]}
    old_rope_dict |= {"factor": 9.0, "beta_fast": 16}  # belong to the replaced scaling
    assert configs.build_rope_parameters(rw.Linear(2), layer.rope, old_rope_dict) == {
        "rope_type": "linear",
        "rope_theta": 500_000.0,
        "factor": 2.0,
        "partial_rotary_factor": 0.5,
        "mrope_section": [16, 24, 24],
    }


def test_p_of_a_proportional_model_is_not_its_rotary_fraction():
    rope = rw.Rope(64, 10_000, 1024)
    proportional = {"rope_type": "proportional", "partial_rotary_factor": 0.25}
    assert "partial_rotary_factor" not in configs.build_rope_parameters(rw.Linear(2), rope, proportional)
    assert configs.build_rope_parameters(rw.Proportional(p=0.5), rope, proportional)["partial_rotary_factor"] == 0.5
    # For other models the same field is the rotary fraction, and one field cannot express both.
    assert configs.build_rope_parameters(rw.Proportional(p=0.5), rope, {"partial_rotary_factor": 0.25}) is None
