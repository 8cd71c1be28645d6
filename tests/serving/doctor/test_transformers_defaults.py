"""The default configurations of transformers, and published configurations that look unusual, have no faults."""

import json
from pathlib import Path

import pytest
import transformers
from transformers import CONFIG_MAPPING
from transformers.models.auto.configuration_auto import CONFIG_MAPPING_NAMES, model_type_to_module_name

import ropewalk as rw
from ropewalk import config as configs
from ropewalk.config.architectures import NO_ROTARY_MODEL_TYPES
from ropewalk.errors import IncompleteConfigError, UnsupportedModelError
from ropewalk.serving.doctor import ExaminedConfig, examine

# By default, hidden_size of these classes is not divisible by num_attention_heads, and they have no head_dim. For Qwen3
# Omni that gives 73 dimensions, and such a model fails in transformers. The published models have head_dim.
ODD_HEADS = {
    "glm4_moe", "glm4v_moe", "glm4v_moe_text", "qwen3_omni_moe", "qwen3_omni_moe_text", "qwen3_omni_moe_thinker",
}  # fmt: skip
# Several parts of these have the size of a head under other names, so that they cannot be examined.
HEADLESS = {"blt", "moonshine"}


def rotary_architectures():
    """Architectures whose files mention rope fields; creating the others would take most of the time."""
    models = Path(transformers.__file__).parent / "models"
    for name in CONFIG_MAPPING_NAMES:
        files = (models / model_type_to_module_name(name)).glob("configuration_*.py")
        if any("rope_parameters" in file.read_text(encoding="utf-8") for file in files):
            yield name


def examine_defaults(name):
    """Return severity and kind of each finding, or the error."""
    try:
        config = ExaminedConfig(CONFIG_MAPPING[name]().to_dict(), engine="transformers")
        return {(finding.severity, finding.kind) for finding in examine(config).findings}
    except rw.InputError as error:
        return error


def test_defaults_of_every_architecture_have_no_fault():
    # gemma4_assistant cannot be created without arguments.
    without_rotary = {"granitemoehybrid", *NO_ROTARY_MODEL_TYPES}
    names = set(rotary_architectures()) - {"gemma4_assistant"} - without_rotary
    results = {name: examine_defaults(name) for name in names}
    image_models = {name for name, result in results.items() if "positions in an image" in str(result)}
    assert "efficientloftr" in image_models
    assert len(image_models) > 1
    assert all(isinstance(results[name], UnsupportedModelError) for name in image_models)
    refused = {name: result for name, result in results.items() if isinstance(result, rw.InputError)}
    unsupported = {name for name, result in refused.items() if isinstance(result, UnsupportedModelError)}
    assert all("no rotary embedding" in str(refused[name]) for name in unsupported - image_models)
    assert all(isinstance(refused[name], IncompleteConfigError) for name in set(refused) - unsupported)
    headless = {name for name in set(refused) - unsupported if "with rope fields" not in str(refused[name])}
    assert headless == HEADLESS
    assert all("head_dim" in str(refused[name]) for name in HEADLESS)
    with_findings = {name: result for name, result in results.items() if result and name not in refused}
    odd_heads = {("suspicious", "head-dim-broken"), ("wrong", "unreadable")}
    assert with_findings == dict.fromkeys(ODD_HEADS, odd_heads) | {
        "glm_moe_dsa": {("suspicious", "base-too-small")},  # 10,000; GLM-5 is published with 1,000,000
    }
    assert sum(result == set() for result in results.values()) > 200


# As published: Google omits heads, base and length; both freq factors of Meta are equal; Tencent writes options of yarn
# beside its alpha; the bases of DeepSeek and Zhipu look small, but are those of the training.
HEADS = {"hidden_size": 4096, "num_attention_heads": 32, "num_hidden_layers": 40, "head_dim": 128}
GEMMA_3_4B = {
    "model_type": "gemma3",
    "text_config": {
        "model_type": "gemma3_text", "hidden_size": 2560, "intermediate_size": 10_240, "num_hidden_layers": 34,
        "rope_scaling": {"factor": 8.0, "rope_type": "linear"}, "sliding_window": 1024,
    },
}  # fmt: skip
LLAMA_4 = {
    "model_type": "llama4",
    "text_config": {
        "model_type": "llama4_text", **HEADS, "max_position_embeddings": 10_485_760, "rope_theta": 500_000.0,
        "rope_scaling": {
            "rope_type": "llama3", "factor": 16.0, "low_freq_factor": 1.0, "high_freq_factor": 1.0,
            "original_max_position_embeddings": 8192,
        },
    },
}  # fmt: skip
HUNYUAN = {
    "model_type": "hunyuan_v1_dense", **HEADS, "max_position_embeddings": 262_144, "rope_theta": 10_000.0,
    "rope_scaling": {
        "alpha": 1000.0, "beta_fast": 32, "beta_slow": 1, "factor": 1.0, "mscale": 1.0, "mscale_all_dim": 1.0,
        "type": "dynamic",
    },
}  # fmt: skip
R1_DISTILL = {
    "model_type": "qwen2", **HEADS, "max_position_embeddings": 131_072, "rope_theta": 10_000, "sliding_window": 4096,
    "use_sliding_window": False,
}  # fmt: skip
GLM_4 = {
    "model_type": "glm4", **HEADS, "max_position_embeddings": 32_768, "rope_theta": 10_000.0,
    "partial_rotary_factor": 0.5,
}  # fmt: skip


@pytest.mark.parametrize("config", [LLAMA_4, HUNYUAN, R1_DISTILL, GLM_4], ids=["llama4", "hunyuan", "r1", "glm4"])
def test_unusual_published_configuration_has_no_finding(config):
    assert examine(ExaminedConfig(config)).findings == ()


def test_defaults_of_the_architecture_are_used_for_omitted_fields(tmp_path):
    file = tmp_path / "config.json"
    file.write_text(json.dumps(GEMMA_3_4B))
    config, model_config = ExaminedConfig.from_model(str(file)), configs.read(file)
    assert config.model_config == model_config
    assert {layer_type: layer.rope.base for layer_type, layer in model_config.ropes.items()} == {
        "full_attention": 1_000_000.0, "sliding_attention": 10_000.0,
    }  # fmt: skip
    assert (model_config.ropes["full_attention"].rope.dim, model_config.max_length) == (256, 131_072)
    [finding] = examine(config).findings
    assert (finding.kind, finding.fix) == ("base-missing", {"text_config.rope_theta": 1_000_000.0})
    assert config.config == GEMMA_3_4B  # the examined fields are those of the file
    fixed = examine(config.with_changes({("text_config", "rope_theta"): 1_000_000.0}))
    assert fixed.findings == ()
    assert "transformers" not in fixed.engines


def test_unknown_default_base_has_no_fix():
    unknown = {"model_type": "unknown", **HEADS, "max_position_embeddings": 8192}
    linear = {**unknown, "rope_scaling": {"rope_type": "linear", "factor": 2.0}}
    [finding] = examine(ExaminedConfig(linear)).findings
    assert (finding.kind, finding.fix, finding.cosine) == ("base-missing", {}, None)
    rope_dicts = {"sliding_attention": {"rope_type": "default", "rope_theta": 1e4}}
    layer_types = {**unknown, "num_hidden_layers": 2, "layer_types": ["sliding_attention", "full_attention"]}
    [finding] = examine(ExaminedConfig({**layer_types, "rope_parameters": rope_dicts})).findings
    assert (finding.kind, finding.fix) == ("layers-missing", {})
    without_rope = {**layer_types, "rope_parameters": {**rope_dicts, "full_attention": None}}
    assert examine(ExaminedConfig(without_rope)).findings == ()


def test_damaged_configuration_is_unreadable():
    text = {**GEMMA_3_4B["text_config"], "num_hidden_layers": 10**30}
    [finding] = examine(ExaminedConfig({**GEMMA_3_4B, "text_config": text})).findings
    assert (finding.kind, finding.field) == ("unreadable", "num_hidden_layers")


def test_a_suspicious_key_does_not_hide_that_a_configuration_is_unreadable():
    rope_scaling = {"rope_type": "linear", "factor": 2.0, "colour": 1}
    config = {"model_type": "llama", **HEADS, "head_dim": -128, "max_position_embeddings": 8192, "rope_theta": 1e4}
    kinds = [finding.kind for finding in examine(ExaminedConfig({**config, "rope_scaling": rope_scaling})).findings]
    assert kinds == ["unreadable", "key-ignored"]
