"""Planned configurations of all architectures: transformers builds rotary modules with the planned frequencies."""

import copy
import logging

import pytest
from tests.helpers.architectures import LENGTH, MULTIMODAL_MODELS, TEXT_MODELS, build

import ropewalk as rw
from ropewalk import config as configs
from ropewalk.compat.transformers import quiet_transformers
from ropewalk.config.scaled_fields import expected_scalings
from ropewalk.models.rotary_modules import find_rotary_modules

TARGET = 40 * LENGTH  # more than the scaled length of any architecture of the catalogue

# Architectures that `plan` refuses to extend.
REFUSED = [
    "cosmos3_edge", "ernie4_5_vl_moe", "recurrent_gemma",  # they accept no scaling in their configuration
    # Only their layers with a window have a rotary embedding.
    "afmoe", "beam", "cohere2", "cohere_compass_text", "exaone4", "exaone_moe", "kolibri1", "lara_mini", "llama4",
    "llama4_text",
]  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_architectures_that_no_configuration_extends_are_refused(name):
    with pytest.raises(rw.InputError):
        rw.plan(build(name), 2**24)


@pytest.mark.parametrize("name", [name for name in [*TEXT_MODELS, *MULTIMODAL_MODELS] if name not in REFUSED])
def test_transformers_builds_the_planned_frequencies(name, one_thread):
    model = build(name)
    text_config = configs.get_text_config(model.config)
    model_config = configs.read(text_config)
    target = 4 * rw.plan(model, 1).max_position_embeddings
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


def load_config(config, changes, text_config):
    """Return the config of a rotary module as transformers loads it with changes."""
    changed = copy.deepcopy(config)
    for name, value in copy.deepcopy(changes).items():
        setattr(changed, name, value)
    if config is not text_config:  # a copy with another base, which it keeps (Granite SWA)
        changed.rope_parameters["rope_theta"] = config.rope_parameters["rope_theta"]
    with quiet_transformers(logging.CRITICAL):
        return type(changed).from_dict(changed.to_dict())
