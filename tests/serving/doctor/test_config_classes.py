"""What the doctor says of the configurations that transformers has for each architecture: that they are sound."""

import json
from pathlib import Path

import pytest
import transformers
from transformers import CONFIG_MAPPING
from transformers.models.auto.configuration_auto import CONFIG_MAPPING_NAMES, model_type_to_module_name

import ropewalk as rw
from ropewalk import config as configs
from ropewalk.serving.doctor import Subject, examine, load

# hidden_size / num_attention_heads of these classes' defaults is no whole number, and they have no head_dim. Of Qwen3
# Omni that leaves 73 dimensions: a model made so fails in transformers. The published models name head_dim.
ODD_HEADS = {
    "glm4_moe", "glm4v_moe", "glm4v_moe_text", "qwen3_omni_moe", "qwen3_omni_moe_text", "qwen3_omni_moe_thinker",
}  # fmt: skip
# The size of a head stands in several parts under names of their own, so that nothing can be examined.
HEADLESS = {"blt", "moonshine"}
OF_IMAGES = {"efficientloftr"}  # as are all of type `axial`


def rotary():
    """The architectures whose files mention rope fields: to make all the others would take most of the time."""
    models = Path(transformers.__file__).parent / "models"
    for name in CONFIG_MAPPING_NAMES:
        files = (models / model_type_to_module_name(name)).glob("configuration_*.py")
        if any("rope_parameters" in file.read_text(encoding="utf-8") for file in files):
            yield name


def verdict(config):
    try:
        findings = examine(Subject(config, engine="transformers")).findings
    except rw.InputError as error:
        return str(error)
    return {(each.severity, each.kind) for each in findings}


def test_defaults_of_every_architecture_are_sound():
    said = {name: verdict(CONFIG_MAPPING[name]().to_dict()) for name in rotary() if name != "gemma4_assistant"}
    refused = {name: each for name, each in said.items() if isinstance(each, str) and "with rope fields" not in each}
    for_images = {name for name, each in refused.items() if "the place in an image" in each}
    assert for_images > OF_IMAGES
    assert set(refused) - for_images == HEADLESS
    assert all("head_dim" in refused[name] for name in HEADLESS)
    found = {name: each for name, each in said.items() if each and not isinstance(each, str)}
    assert found == {name: {("suspicious", "head-dim-broken")} for name in ODD_HEADS}
    assert sum(each == set() for each in said.values()) > 200


# As published: Google leaves out heads, base and length; Meta's two factors are the same; Tencent writes options of
# yarn beside its alpha; DeepSeek's and Zhipu's bases are those that were trained with, however small they look.
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
def test_what_makers_publish_is_sound(config):
    assert examine(Subject(config)).findings == ()


def test_fields_left_to_the_architecture_are_read_as_config_reads_them(tmp_path):
    file = tmp_path / "config.json"
    file.write_text(json.dumps(GEMMA_3_4B))
    subject = load(str(file))
    read = configs.read(file)
    assert subject.model_config == read
    assert {kind: each.rope.base for kind, each in read.ropes.items()} == {
        "full_attention": 1_000_000.0, "sliding_attention": 10_000.0,
    }  # fmt: skip
    assert (read.ropes["full_attention"].rope.dim, read.max_length) == (256, 131_072)
    [finding] = examine(subject).findings
    assert (finding.kind, finding.fix) == ("base-missing", {"text_config.rope_theta": 1_000_000.0})
    assert subject.config == GEMMA_3_4B  # the fields that are named are those of the file
    healed = subject.with_({("text_config", "rope_theta"): 1_000_000.0})
    report = examine(healed)
    assert report.findings == ()
    assert "transformers" not in report.engines


def test_a_base_that_is_not_known_is_not_proposed():
    nobody = {"model_type": "nobody", **HEADS, "max_position_embeddings": 8192}
    [finding] = examine(Subject({**nobody, "rope_scaling": {"rope_type": "linear", "factor": 2.0}})).findings
    assert (finding.kind, finding.fix, finding.cosine) == ("base-missing", {}, None)
    nested = {"sliding_attention": {"rope_type": "default", "rope_theta": 1e4}}
    layers = {"layer_types": ["sliding_attention", "full_attention"], "rope_parameters": nested}
    [finding] = examine(Subject({**nobody, **layers})).findings
    assert (finding.kind, finding.fix) == ("layers-missing", {})
    assert examine(Subject({**nobody, **layers, "rope_parameters": {**nested, "full_attention": None}})).findings == ()


def test_a_damaged_file_is_not_completed():
    text = {**GEMMA_3_4B["text_config"], "num_hidden_layers": 10**30}
    with pytest.raises(rw.InputError, match="head_dim"):
        examine(Subject({**GEMMA_3_4B, "text_config": text}))
