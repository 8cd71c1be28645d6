"""The sizes of the KV cache against the caches that transformers fills for tiny models of all architectures."""

import dataclasses

import pytest
import torch
from tests.helpers.architectures import LONG_IDS, MULTIMODAL_MODELS, TEXT_MODELS, build, build_with_random_weights
from tests.helpers.real_configs import real_config_path
from transformers import CONFIG_MAPPING, DynamicCache

from ropewalk.compat.transformers import find_output_cache
from ropewalk.config import LayerShape, read
from ropewalk.config.gguf_attention_shape import parse_gguf_attention_shape
from ropewalk.planning import compute_kv_cache_bytes

# Architectures whose cache does not grow layer by layer as transformers' cache classes do.
EXCEPTIONS = {
    "recurrent_gemma": "keeps its window in the attention modules, not in a cache",
}
# Fields with which an architecture keeps other sizes than with those of the catalogue.
VARIANTS = {
    "three loops with keys of their own": ("dory", {"n_recurrent_loops": 3}),
    "loops that share keys": ("dory", {"recurrent_kv_cache_mode": "last_loop"}),
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
        cache = find_output_cache(model(input_ids=ids_BT, use_cache=True))
    assert isinstance(cache, DynamicCache)
    # Dory counts its MLPs as layers, and its cache has no entry for them.
    layers = [layer for layer in read(model).attention.layers if layer.layer_type != "mlp"]
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


# Without fields, the first has an odd number of rotary dimensions, and the next two have no rotary embedding. Dory
# counts its MLPs as layers only in a configuration that is written out.
NOT_READ_WITHOUT_FIELDS = {"glm4_moe", "granitemoehybrid", "zamba2", "dory"}


@pytest.mark.parametrize("name", [name for name in TEXT_MODELS if name not in NOT_READ_WITHOUT_FIELDS])
def test_shape_without_any_field_is_that_of_the_class(name):
    # The configuration leaves everything out; the class of the architecture fills it in.
    config = CONFIG_MAPPING[name]().get_text_config(decoder=True)
    assert read({"model_type": config.model_type}).attention == read(type(config)()).attention


# name in tests/real_configs, tokens, GiB in bfloat16
REAL_CACHES = {
    "qwen35moe.gguf": (320_000, 6.1),
    "lfm2.gguf": (131_072, 1.5),
    "gemma3_27b_good.gguf": (131_072, 10.4),
    "qwen3_next": (262_144, 6.0),
    "gemma4_31b": (262_144, 20.8),
    "llama4s": (524_288, 25.1),
    "mimo": (524_288, 11.3),
    "step35": (262_144, 12.1),  # 12 full layers and 33 of 512 tokens, with 8 x 256 numbers for each token
    "olmo3_7b": (65_536, 9.5),  # 8 full layers and 24 of 4,096 tokens, with 32 x 256 numbers
    "minimax_text_01": (262_144, 10.0),  # 10 of 80 layers, with 8 x 256 numbers
    "llama4_maverick": (262_144, 13.1),  # 12 full layers and 36 of 8,192 tokens, with 8 x 256 numbers
}


@pytest.mark.parametrize("name", REAL_CACHES)
def test_kv_cache_of_a_real_configuration(name):
    length, gibibytes = REAL_CACHES[name]
    size = compute_kv_cache_bytes(read(str(real_config_path(name))).attention, length)
    assert round(size / 2**30, 1) == gibibytes


def test_kv_cache_of_dsv4():
    # Of 43 layers, 2 keep 128 tokens; 21 also an entry of 512 + 128 numbers for 4 tokens, 20 one of 512 for 128 tokens.
    # Compressed layers keep keys that are values, 512 numbers for each token of the window.
    length = 1_048_576
    numbers = 2 * 128 * 1024 + 41 * 128 * 512 + 21 * length // 4 * 640 + 20 * length // 128 * 512
    assert compute_kv_cache_bytes(read(str(real_config_path("dsv4"))).attention, length) == 2 * numbers


SIZES = {
    "model_type": "llama", "hidden_size": 512, "num_attention_heads": 8, "num_hidden_layers": 4, "head_dim": 64,
    "rope_theta": 1e4, "max_position_embeddings": 8192, "num_key_value_heads": 4,
}  # fmt: skip


@pytest.mark.parametrize(
    ("changes", "kv_heads"),
    [
        ({"num_key_value_heads": [4, 2, 1, 0]}, [4, 2, 1, 0]),
        ({"num_key_value_heads": None, "num_kv_heads": [1, 1, 2, 2]}, [1, 1, 2, 2]),
        (
            {
                "block_configs": [
                    {"attention": {"n_heads_in_group": 8, "no_op": False}},
                    {"attention": {"n_heads_in_group": 2, "no_op": False}},
                    {"attention": {"n_heads_in_group": None, "no_op": True}},
                    {"attention": {"no_op": False, "replace_with_linear": True}},
                ]
            },
            [1, 4, 0, 0],
        ),
        ({"layer_types": ["moe", "linear_attention", "full_attention", "mlp"]}, [0, 0, 4, 0]),
    ],
    ids=["list", "list under another name", "Nemotron-NAS", "layers without attention"],
)
def test_kv_heads_of_each_layer(changes, kv_heads):
    assert [layer.kv_heads for layer in read({**SIZES, **changes}).attention.layers] == kv_heads


def gguf_shape(architecture, fields):
    values = {"block_count": 6, "attention.head_count": 4, "embedding_length": 256, **fields}
    named = {f"{architecture}.{name}": value for name, value in values.items()}
    return parse_gguf_attention_shape({"general.architecture": architecture, **named})


def count_windows(architecture, fields):
    """Return the window of each layer, 0 for all tokens."""
    return [layer.window or 0 for layer in gguf_shape(architecture, fields).layers]


def test_gemma_3_270m_gguf_keeps_3_of_18_layers_whole():
    fields = {
        "block_count": 18, "attention.head_count_kv": 1, "attention.key_length": 256, "attention.value_length": 256,
        "attention.sliding_window": 512,
    }  # fmt: skip
    size = compute_kv_cache_bytes(gguf_shape("gemma3", fields), 131_072)
    assert size == 2 * 512 * (3 * 131_072 + 15 * 512)  # 0.38 GiB


@pytest.mark.parametrize(
    ("architecture", "fields", "windows"),
    [
        ("gpt-oss", {"attention.sliding_window": 128}, [128, 0] * 3),
        ("gemma2", {}, [4096, 0] * 3),
        ("llama4", {}, [8192, 8192, 8192, 0, 8192, 8192]),
        ("llama4", {"attention.sliding_window": 0}, [0] * 6),
        ("smallthinker", {"attention.sliding_window": 4096}, [0, 4096, 4096, 4096, 0, 4096]),
        ("cohere2", {"attention.sliding_window": 8, "attention.sliding_window_pattern": 3}, [8, 8, 0] * 2),
        (
            "gemma4",
            {"attention.sliding_window": 8, "attention.sliding_window_pattern": [True, False] * 3},
            [8, 0] * 3,
        ),
        ("mimo2", {"attention.sliding_window": 8, "attention.sliding_window_pattern": [0, 1, 1] * 2}, [0, 8, 8] * 2),
        ("llama", {"attention.sliding_window": 4096}, [0] * 6),  # llama.cpp does not read it
    ],
)
def test_windows_of_a_gguf_file(architecture, fields, windows):
    assert count_windows(architecture, fields) == windows


def test_sliding_layers_of_a_gguf_file_have_heads_of_their_own():
    fields = {
        "attention.head_count_kv": [8, 2] * 3, "attention.key_length": 512, "attention.value_length": 512,
        "attention.key_length_swa": 256, "attention.value_length_swa": 256, "attention.sliding_window": 1024,
        "attention.sliding_window_pattern": [True, False] * 3, "attention.shared_kv_layers": 2,
    }  # fmt: skip
    sliding, full = LayerShape("sliding_attention", 8, 256, 256, 1024), LayerShape("full_attention", 2, 512, 512)
    without_keys = LayerShape("sliding_attention", 0, 0, 0), LayerShape("full_attention", 0, 0, 0)
    assert gguf_shape("gemma4", fields).layers == (sliding, full, sliding, full, *without_keys)


def test_latent_keys_of_a_gguf_file_contain_the_values():
    # DeepSeek V3: llama.cpp keeps 512 latent and 64 rotary numbers for each token.
    fields = {
        "attention.head_count": 128, "attention.head_count_kv": 1, "attention.key_length": 576,
        "attention.value_length": 512, "attention.key_length_mla": 192, "attention.value_length_mla": 128,
    }  # fmt: skip
    assert compute_kv_cache_bytes(gguf_shape("deepseek2", fields), 1000) == 6 * 1000 * 576 * 2


def test_layers_for_the_prediction_of_several_tokens_keep_nothing():
    assert len(gguf_shape("glm4moe", {"nextn_predict_layers": 1}).layers) == 5


@pytest.mark.parametrize(
    ("architecture", "fields"),
    [
        ("qwen3next", {}),
        ("qwen35", {"full_attention_interval": 4}),
        ("granitehybrid", {"attention.head_count_kv": [0, 0, 0, 2, 0, 0]}),
    ],
)
def test_recurrent_layers_of_a_gguf_file_keep_nothing(architecture, fields):
    assert [layer.kv_heads > 0 for layer in gguf_shape(architecture, fields).layers] == [False] * 3 + [True] + [
        False
    ] * 2
