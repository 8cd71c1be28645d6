"""What a config.json leaves out, against transformers' own reading of it."""

import copy

import pytest
from transformers import AutoConfig

from ropewalk import config as configs

GEMMA = {"model_type": "gemma3_text", "hidden_size": 2560, "num_hidden_layers": 12}
LEFT_OUT = {
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


@pytest.mark.parametrize("config", LEFT_OUT.values(), ids=LEFT_OUT)
def test_what_is_left_out_is_read_as_transformers_has_it(config):
    before = copy.deepcopy(config)
    read = configs.from_dict(configs.fill_missing_defaults(config))
    assert config == before
    theirs = configs.read(AutoConfig.for_model(**copy.deepcopy(config)))
    assert read.ropes == theirs.ropes
    assert (read.max_length, read.attention) == (theirs.max_length, theirs.attention)


def test_what_is_whole_or_of_nobody_stays_as_it_is():
    whole = {"model_type": "llama", "hidden_size": 1024, "num_attention_heads": 8, "rope_theta": 1e4}
    nobody = {"model_type": "nobody", "rope_theta": 1e4}
    for config in (whole, nobody, {"model_type": "llama", "num_hidden_layers": 10**30}):
        assert configs.fill_missing_defaults(config) is config
