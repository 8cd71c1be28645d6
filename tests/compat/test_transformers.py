"""Fails when transformers moves what ropewalk.compat.transformers depends on."""

import functools
import inspect
import logging
from types import SimpleNamespace

import pytest
import torch
from tests.helpers import architectures
from transformers import DynamicCache, GenerationMixin, cache_utils

from ropewalk.compat.transformers import (
    PREPARE_CACHE_METHOD,
    ROTATABLE_CACHE_LAYERS,
    applied_softmax_factor,
    cache_argument_name,
    cache_for_call,
    cache_for_generate,
    find_cache_argument,
    find_output_cache,
    prepare_cache_and_report_lengths,
    quiet_transformers,
)


def test_the_method_that_prepares_the_cache_has_the_parameters_of_its_replacement():
    method = getattr(GenerationMixin, PREPARE_CACHE_METHOD)
    replacement = list(inspect.signature(prepare_cache_and_report_lengths).parameters)
    assert list(inspect.signature(method).parameters)[1:] == replacement[2:]


def test_a_cache_is_found_under_either_name():
    """transformers 5.24 renamed `past_key_values` to `cache`; code on the hub has either."""
    cache = DynamicCache()

    class Old:
        def forward(self, input_ids, past_key_values=None): ...

    class New:
        def forward(self, input_ids, cache=None): ...

    class Without:
        def forward(self, input_ids): ...

    assert cache_for_call(Old(), cache) == {"past_key_values": cache}
    assert cache_for_call(New(), cache) == {"cache": cache}
    assert cache_argument_name(Without().forward) is None
    for name in ("past_key_values", "cache"):
        assert find_cache_argument({name: cache, "input_ids": None}) is cache
        assert find_output_cache(SimpleNamespace(**{name: cache})) is cache
        assert find_output_cache(SimpleNamespace(**{name: None})) is None
    assert find_cache_argument({"past_key_values": None}) is None
    assert find_output_cache((torch.zeros(1), cache)) is cache


@pytest.mark.parametrize("wrap", [lambda model: model, torch.nn.DataParallel])
def test_the_models_of_transformers_take_a_cache_under_the_name_that_is_found(wrap):
    model, cache = architectures.build("llama"), DynamicCache()
    output = model(architectures.IDS, **cache_for_call(wrap(model), cache), use_cache=True)
    assert find_output_cache(output) is cache
    assert cache.get_seq_length() == architectures.IDS.shape[1]


def test_generate_reports_the_longest_possible_text_of_each_row():
    model, reports = architectures.build("llama"), []

    def report_lengths(cache, lengths):
        reports.append((cache, lengths))

    replacement = functools.partial(prepare_cache_and_report_lengths, model, report_lengths)
    setattr(model, PREPARE_CACHE_METHOD, replacement)
    mask_BT = torch.ones_like(architectures.IDS)
    mask_BT[1, :6] = 0
    cache = DynamicCache()
    options = {"max_new_tokens": 4, "do_sample": False, "eos_token_id": None, **cache_for_generate(cache)}
    model.generate(architectures.IDS, attention_mask=mask_BT, **options)
    assert reports == [(cache, (20, 14))]


@pytest.mark.parametrize("name", sorted(ROTATABLE_CACHE_LAYERS))
def test_rotatable_cache_layers_exist(name):
    assert hasattr(cache_utils, name)


def test_dynamic_layers_return_the_stored_keys():
    layer = cache_utils.DynamicLayer()
    keys = torch.randn(1, 2, 3, 4)
    returned, _ = layer.update(keys, keys)
    assert returned is layer.keys
    assert layer.get_seq_length() == 3


def test_caches_have_the_methods_that_the_key_state_repeats():
    for name in ("crop", "reorder_cache", "batch_select_indices", "batch_repeat_interleave", "reset"):
        assert callable(getattr(DynamicCache, name))
    assert hasattr(DynamicCache(), "offloading")


def test_the_softmax_factor_of_latent_attention_is_found_and_no_other():
    yarn = {"rope_type": "yarn", "factor": 40.0, "mscale": 1.0, "mscale_all_dim": 1.0, "rope_theta": 1e4}
    attention = architectures.build("deepseek_v3").model.layers[0].self_attn
    scale_without_yarn = attention.scaling
    factor = applied_softmax_factor(attention, yarn)
    assert factor == pytest.approx((0.1 * torch.tensor(40.0).log().item() + 1) ** 2)
    assert applied_softmax_factor(attention, {"rope_type": "default"}) == 1
    assert attention.scaling == scale_without_yarn
    assert applied_softmax_factor(architectures.build("llama").model.layers[0].self_attn, yarn) is None


def test_transformers_is_quiet_inside_the_block_only():
    logger = logging.getLogger("transformers")
    before = logger.level
    with quiet_transformers(logging.CRITICAL):
        assert not logger.isEnabledFor(logging.ERROR)
    assert logger.level == before
