"""Fields that a config.json omits are filled with the defaults of transformers."""

import copy

import pytest
from transformers import AutoConfig

from ropewalk import config as configs

GEMMA = {"model_type": "gemma3_text", "hidden_size": 2560, "num_hidden_layers": 12}
INCOMPLETE = {
    "heads": {"model_type": "llama", "rope_theta": 5e5, "hidden_size": 2048},
    "heads, beside rope_scaling": {**GEMMA, "rope_scaling": {"rope_type": "linear", "factor": 8.0}},
    "all rope fields": GEMMA,
    "a base": {
        "model_type": "ernie4_5", "hidden_size": 1024, "num_attention_heads": 8, "head_dim": 128,
        "num_key_value_heads": 2, "num_hidden_layers": 4,
        "max_position_embeddings": 4096, "rope_scaling": {"rope_type": "linear", "factor": 2.0},
    },
    "heads of the text part": {"model_type": "llava", "text_config": {"model_type": "llama", "rope_theta": 5e5}},
}  # fmt: skip


@pytest.mark.parametrize("config", INCOMPLETE.values(), ids=INCOMPLETE)
def test_incomplete_configuration_is_parsed_as_by_transformers(config):
    before = copy.deepcopy(config)
    ours = configs.from_dict(configs.fill_defaults_if_incomplete(config))
    assert config == before
    reference = configs.read(AutoConfig.for_model(**copy.deepcopy(config)))
    assert ours.ropes == reference.ropes
    assert (ours.max_length, ours.attention) == (reference.max_length, reference.attention)


def test_complete_unknown_and_invalid_configurations_stay_unchanged():
    sizes = {"hidden_size": 1024, "num_attention_heads": 8, "max_position_embeddings": 2048}
    complete = {"model_type": "llama", **sizes, "rope_theta": 1e4}
    unknown = {"model_type": "unknown", "rope_theta": 1e4}
    invalid = {"model_type": "llama", "num_attention_heads": "eight"}
    for config in (complete, unknown, invalid):
        assert configs.fill_defaults_if_incomplete(config) is config
