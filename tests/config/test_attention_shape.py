"""The sizes of the KV cache against the caches that transformers fills for tiny models of all architectures."""

import dataclasses

import pytest
import torch
from tests.helpers.architectures import LONG_IDS, MULTIMODAL_MODELS, TEXT_MODELS, build, build_with_random_weights
from transformers import DynamicCache

from ropewalk.config import read

# Architectures whose cache does not grow layer by layer as transformers' cache classes do.
EXCEPTIONS = {
    "recurrent_gemma": "keeps its window in the attention modules, not in a cache",
}
# Fields with which an architecture keeps other sizes than with those of the catalogue.
VARIANTS = {
    "chunked attention": ("llama4_text", {"attention_chunk_size": 16, "num_hidden_layers": 4}),
    "keys shared by the last layers": (
        "gemma3n_text",
        {
            "num_hidden_layers": 4, "layer_types": ["sliding_attention", "full_attention"] * 2,
            "num_kv_shared_layers": 2, "activation_sparsity_pattern": [0.0] * 4, "intermediate_size": [96] * 4,
        },
    ),
    "fewer heads in global layers": (
        "gemma4_text", {"attention_k_eq_v": True, "num_global_key_value_heads": 1, "num_key_value_heads": 4},
    ),
    "global heads without shared values": (
        "gemma4_text", {"attention_k_eq_v": False, "num_global_key_value_heads": 1, "num_key_value_heads": 4},
    ),
    "gemma4 with shared keys": (
        "gemma4_text",
        {
            "num_hidden_layers": 4, "layer_types": ["sliding_attention", "full_attention"] * 2,
            "num_kv_shared_layers": 2,
        },
    ),
    "heads of sliding layers": ("mimo_v2_flash", {"num_key_value_heads": 1, "v_head_dim": 8}),
    "sliding window in use": (
        "qwen2", {"use_sliding_window": True, "max_window_layers": 1, "sliding_window": 16},
    ),
    "latent sliding layers": (
        "dots3_note_text",
        {
            "layer_types": ["indexed_attention", "sliding_attention"],
            "per_layer_config": {1: {"kv_lora_rank": 24, "qk_nope_head_dim": 8, "head_dim": 16}},
        },
    ),
    "shared indexer": ("glm_moe_dsa", {"indexer_types": ["full", "shared"]}),
    "sparse blocks": (
        "minimax_m3_vl_text",
        {"layer_types": ["full_attention", "minimax_m3_sparse"], "index_block_size": 8},
    ),
}  # fmt: skip


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    """Tiny models spend their time waiting for threads, not computing."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def count_cached_numbers(layer):
    """Return how many numbers a layer of a cache keeps, without states that do not grow with the text."""
    tensors = [layer.keys, layer.values] if getattr(layer, "keys", None) is not None else []
    tensors += [getattr(layer, name, None) for name in ("indexer_keys", "idx_keys")]
    tensors += getattr(layer, "compressed_kv", {}).values()
    distinct = {tensor.data_ptr(): tensor for tensor in tensors if tensor is not None}
    return sum(tensor.numel() for tensor in distinct.values())


def assert_shape_matches_cache(model):
    ids_BT = LONG_IDS[:1]
    with torch.no_grad():
        cache = model(input_ids=ids_BT, use_cache=True).past_key_values
    assert isinstance(cache, DynamicCache)
    layers = read(model).attention.layers
    # Between two steps transformers keeps one token less than the window; the next one completes it.
    layers = [dataclasses.replace(layer, window=layer.window and layer.window - 1) for layer in layers]
    expected = [count_cached_numbers(layer) for layer in cache.layers]
    assert [layer.count_numbers(ids_BT.shape[1]) for layer in layers] == expected


@pytest.mark.parametrize("name", [name for name in [*TEXT_MODELS, *MULTIMODAL_MODELS] if name not in EXCEPTIONS])
def test_shape_matches_the_cache_of_transformers(name):
    assert_shape_matches_cache(build(name))


@pytest.mark.parametrize(("name", "changes"), VARIANTS.values(), ids=VARIANTS)
def test_shape_of_a_variant_matches_the_cache_of_transformers(name, changes):
    assert_shape_matches_cache(build(name, **changes))


@pytest.mark.parametrize("indexer_type", ["full", "shared"])
def test_layer_that_reads_the_latents_of_another_keeps_at_most_its_indexer(indexer_type):
    model = build("mistral_large4")
    text_config = model.config.get_text_config()
    text_config.kv_source_layers, text_config.indexer_types = [0, 0], ["full", indexer_type]
    assert_shape_matches_cache(build_with_random_weights(type(model), model.config))
