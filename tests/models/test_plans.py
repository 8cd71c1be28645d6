"""Planned configurations of all architectures: transformers builds rotary modules with the planned frequencies."""

import copy
import logging

import pytest
from tests.helpers.architectures import LENGTH, MULTIMODAL_MODELS, TEXT_MODELS, build

import ropewalk as rw
from ropewalk import config as configs
from ropewalk.compat.transformers import quiet_transformers
from ropewalk.config.architectures import NO_ROPE_IN_FULL_ATTENTION_MODEL_TYPES
from ropewalk.config.scaled_fields import expected_scalings
from ropewalk.models.rotary_modules import find_rotary_modules

TARGET = 40 * LENGTH  # more than the scaled length of any architecture of the catalogue

# Architectures whose longer texts no configuration can express, so that `plan` refuses them.
NO_SCALING_ACCEPTED = ["cosmos3_edge", "ernie4_5_vl_moe", "recurrent_gemma"]


@pytest.mark.parametrize("name", [*TEXT_MODELS, *MULTIMODAL_MODELS])
def test_transformers_builds_the_planned_frequencies(name, one_thread):
    model = build(name)
    text_config = configs.get_text_config(model.config)
    model_config = configs.read(text_config)
    target = 4 * rw.plan(model, 1).max_position_embeddings
    if name in NO_SCALING_ACCEPTED or reads_whole_text_without_rotation(model_config):
        with pytest.raises(rw.InputError):
            rw.plan(model, target)
        return
    planned = rw.plan(model, target)
    assert planned.needed
    changes = {"rope_parameters": planned.rope_parameters, "max_position_embeddings": planned.max_position_embeddings}
    scalings = expected_scalings(model_config, planned.scaling)
    for rotary in find_rotary_modules(model, text_config):
        built = rotary.built_from(load_config(rotary.config, changes, text_config))
        for layer_type, layer in rotary.layers().items():
            scaling = scalings[layer.config_layer_type]
            expected = configs.compute_layer_frequencies(scaling, layer.layer_rope, target)
            assert built.computes(layer_type, expected, layer.channel_layout, target), layer_type


def reads_whole_text_without_rotation(model_config):
    """Return whether only layers with a window have a rotary embedding, so that no scaling extends the model."""
    windows = {layer.window for layer in model_config.attention.layers if layer.kv_heads}
    has_local_ropes = all(map(configs.is_local, model_config.ropes)) and None in windows
    return has_local_ropes or (model_config.model_type in NO_ROPE_IN_FULL_ATTENTION_MODEL_TYPES and windows != {None})


def load_config(config, changes, text_config):
    """Return the config of a rotary module as transformers loads it with changes."""
    changed = copy.deepcopy(config)
    for name, value in copy.deepcopy(changes).items():
        setattr(changed, name, value)
    if config is not text_config:  # a copy with another base, which it keeps (Granite SWA)
        changed.rope_parameters["rope_theta"] = config.rope_parameters["rope_theta"]
    with quiet_transformers(logging.CRITICAL):
        return type(changed).from_dict(changed.to_dict())
