"""What a model's configuration decides about a position method."""

from __future__ import annotations

import copy

import pytest

import ropewalk as rw
from ropewalk.models.position_options import complete_position_method


def with_rope(model, max_length=None, **rope_parameters):
    config = copy.deepcopy(model.config)
    config.rope_parameters = {**config.rope_parameters, **rope_parameters}
    if max_length:
        config.max_position_embeddings = max_length
    return config


def complete(method, config):
    return complete_position_method(method, config, rw.config.read(config))


def test_the_static_scaling_of_a_configuration_counts_as_trained(tiny):
    config = with_rope(tiny, 256, rope_type="yarn", factor=4.0, original_max_position_embeddings=64)
    assert complete(rw.ReRoPE(), config) == (rw.ReRoPE(), 256)
    with pytest.raises(rw.InputError, match="the frequencies of the model are those of its own yarn"):
        complete(rw.NearExact(), config)


def test_a_model_whose_frequencies_follow_the_text_is_refused(tiny):
    config = with_rope(tiny, rope_type="dynamic", factor=4.0)
    with pytest.raises(rw.InputError, match="the frequencies of the model are those of its own dynamic-ntk"):
        complete(rw.ReRoPE(), config)


def test_dual_chunk_takes_its_options_from_the_configuration(tiny):
    config = with_rope(tiny, 1024)
    config.dual_chunk_attention_config = {"chunk_size": 64, "local_size": 16, "original_max_position_embeddings": 128}
    assert complete(rw.DualChunk(), config) == (rw.DualChunk(64, 16), 128)
    assert complete(rw.DualChunk(local_size=8), config) == (rw.DualChunk(64, 8), 128)
    assert complete(rw.SelfExtend(), config) == (rw.SelfExtend(), 128)
    assert complete(rw.SelfExtend(original_length=100), config)[1] == 100
