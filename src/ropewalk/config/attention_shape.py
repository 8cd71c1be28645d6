"""The sizes of the KV cache of a model, layer by layer.

The sizes are those of the cache of transformers (cache_utils.py of version 5.23 and the cache classes in
modeling_*.py). The states of recurrent layers (linear attention, Mamba, convolutions) are no part of it, because they
do not grow with the text.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ropewalk.config import architectures
from ropewalk.config.fields import compute_head_dim, get_count, get_first
from ropewalk.config.layer_overrides import override_for_layer
from ropewalk.config.layer_types import check_layer_count, is_local

_NUM_KV_HEADS_FIELDS = ("num_key_value_heads", "num_key_value_heads_per_layer")
# Parts of the names of layer types that keep no keys and values.
_CACHELESS_LAYER_TYPES = ("linear", "mamba", "conv", "recurrent", "moe", "mlp")
# Tokens that share a compressed entry, by layer type. Source: configuration_deepseek_v4.py of transformers 5.23.
_COMPRESS_RATES = {"compressed_sparse_attention": 4, "heavily_compressed_attention": 128}
# Layer types that keep the keys of an indexer, which selects the tokens to attend to.
_INDEXED_LAYER_TYPES = ("indexed_attention", "compressed_sparse_attention", "minimax_m3_sparse")


@dataclass(frozen=True)
class LayerShape:
    """The sizes of the KV cache of one layer.

    Attributes:
        layer_type: the kind of layer, such as "full_attention".
        kv_heads, key_dim, value_dim: a token has kv_heads (key_dim + value_dim) numbers. A layer without a KV cache has
            0 heads. Latent attention (MLA) has 1 head, with the latent as key and the rotary dimensions as value.
        window: how many of the last tokens are kept; None for all.
        indexer_dim: numbers that an indexer keeps for each token, or for each compressed entry.
        compression: tokens that share a compressed entry of key_dim numbers, kept beside the window; None without.
    """

    layer_type: str
    kv_heads: int
    key_dim: int
    value_dim: int
    window: int | None = None
    indexer_dim: int = 0
    compression: int | None = None

    def count_numbers(self, length: int) -> int:
        """Return how many numbers the layer keeps of a text of `length` tokens."""
        kept_tokens = length if self.window is None else min(length, self.window)
        numbers = kept_tokens * self.kv_heads * (self.key_dim + self.value_dim)
        if self.compression is None:
            return numbers + length * self.indexer_dim
        return numbers + length // self.compression * (self.key_dim + self.indexer_dim)


@dataclass(frozen=True)
class AttentionShape:
    """The sizes of the KV cache of a model.

    Attributes:
        layers: the sizes of each layer.
        bytes_per_number: 2 for bfloat16 and float16, 4 for float32.
    """

    layers: tuple[LayerShape, ...]
    bytes_per_number: int

    @property
    def layer_types(self) -> tuple[str, ...]:
        """The kind of each layer."""
        return tuple(layer.layer_type for layer in self.layers)


def has_kv_cache(layer_type: str) -> bool:
    """Return whether layers of this type keep keys and values."""
    return not any(name in layer_type for name in _CACHELESS_LAYER_TYPES)


def parse_attention_shape(config: Mapping[str, Any]) -> AttentionShape | None:
    """Return the sizes of the KV cache, or None if the configuration does not contain them.

    Args:
        config: the result of `normalize`.

    Raises InputError for sizes that are not whole numbers above 0.
    """
    num_layers = get_count(config, "num_hidden_layers")
    if not (num_layers and _parse_kv_heads(config, 0) is not None and compute_head_dim(config)):
        return None
    num_layers *= _count_attentions_per_layer(config)
    check_layer_count(num_layers)
    layer_types = config["layer_types"] * (num_layers // len(config["layer_types"]))
    layers = tuple(_parse_layer(config, index, layer_type) for index, layer_type in enumerate(layer_types))
    layers += _find_repeated_layers(config, layers)
    bytes_per_number = 4 if str(get_first(config, "dtype", "torch_dtype")).endswith("float32") else 2
    return AttentionShape(layers, bytes_per_number)


def _parse_layer(config: Mapping[str, Any], index: int, layer_type: str) -> LayerShape:
    """Return the sizes of one layer."""
    if not has_kv_cache(layer_type):
        return LayerShape(layer_type, 0, 0, 0)
    config = override_for_layer(config, index, layer_type)
    kv_heads, key_dim, value_dim = _parse_token_sizes(config, index)
    if _reads_keys_of_another_layer(config, index):
        kv_heads = 0
    stated_rates = config.get("compress_rates")
    rates = {**_COMPRESS_RATES, **(stated_rates if isinstance(stated_rates, Mapping) else {})}
    compression = get_count(rates, layer_type)
    return LayerShape(
        layer_type,
        kv_heads,
        key_dim,
        value_dim if compression is None else 0,  # the values are the keys, stored once
        window=_parse_window(config, layer_type, compression),
        indexer_dim=_parse_indexer_dim(config, index, layer_type),
        compression=compression,
    )


def _count_attentions_per_layer(config: Mapping[str, Any]) -> int:
    """Return how many attentions, each with a KV cache, belong to one layer that the configuration counts."""
    if config.get("model_type") == "hrm_text" and config.get("num_layers_per_stack") is None:
        # Each cycle runs the same layers again, with keys of its own. Source: configuration_hrm_text.py.
        return (get_count(config, "H_cycles") or 1) * ((get_count(config, "L_cycles") or 0) + 1)
    return architectures.ATTENTIONS_PER_LAYER.get(str(config.get("model_type")), 1)


def _find_repeated_layers(config: Mapping[str, Any], layers: tuple[LayerShape, ...]) -> tuple[LayerShape, ...]:
    """Return the layers of Dory that run again, each time with keys of its own. Source: modeling_dory.py."""
    if config.get("model_type") != "dory" or config.get("recurrent_kv_cache_mode") == "last_loop":
        return ()
    first, last = get_count(config, "n_input_layers") or 0, len(layers) - (get_count(config, "n_output_layers") or 0)
    return layers[first:last] * ((get_count(config, "n_recurrent_loops") or 2) - 1)


def _parse_token_sizes(config: Mapping[str, Any], index: int) -> tuple[int, int, int]:
    """Return the KV heads of a layer and the sizes of a key and of a value of one head."""
    latent_dim = get_count(config, "kv_lora_rank")
    if latent_dim and config.get("use_mla", True):
        return 1, latent_dim, get_count(config, "qk_rope_head_dim") or 0
    head_dim = compute_head_dim(config)
    assert head_dim is not None  # checked by parse_attention_shape
    return _parse_kv_heads(config, index) or 0, head_dim, get_count(config, "v_head_dim") or head_dim


def _parse_kv_heads(config: Mapping[str, Any], index: int) -> int | None:
    """Return the KV heads of a layer, which may be 0; None if the configuration does not contain them."""
    blocks = config.get("block_configs")
    if isinstance(blocks, list) and index < len(blocks) and isinstance(blocks[index], Mapping):
        return _parse_kv_heads_of_block(config, blocks[index].get("attention"))
    for name in _NUM_KV_HEADS_FIELDS:
        values = config.get(name)
        if isinstance(values, list | tuple) and index < len(values):  # one number for each layer
            return get_count({name: values[index]}, name) or 0
    # Falcon's first architecture has a single head of keys and values for all heads of queries.
    if config.get("multi_query") is True and not config.get("new_decoder_architecture"):
        return 1
    attention = config.get("attn_config")  # DBRX
    stated = get_count(attention, "kv_n_heads") if isinstance(attention, Mapping) else None
    return stated or get_count(config, *_NUM_KV_HEADS_FIELDS, "num_attention_heads")


def _parse_kv_heads_of_block(config: Mapping[str, Any], attention: Any) -> int:
    """Return the KV heads of a layer of Nemotron-NAS (configuration_decilm.py as published with the models)."""
    if not isinstance(attention, Mapping) or attention.get("no_op") or attention.get("replace_with_linear"):
        return 0
    heads, group_size = get_count(config, "num_attention_heads") or 0, get_count(attention, "n_heads_in_group") or 1
    return heads // group_size


def _reads_keys_of_another_layer(config: Mapping[str, Any], index: int) -> bool:
    """Return whether a layer uses the keys and values of an earlier one, and stores none."""
    sources = config.get("kv_source_layers")  # Mistral Large 4
    if isinstance(sources, list | tuple) and index < len(sources):
        return bool(sources[index] != index)
    num_layers, num_shared = get_count(config, "num_hidden_layers"), get_count(config, "num_kv_shared_layers")
    return index >= (num_layers or 0) - num_shared if num_shared else False  # Gemma 3n and Gemma 4


def _parse_window(config: Mapping[str, Any], layer_type: str, compression: int | None) -> int | None:
    """Return how many of the last tokens a layer keeps, or None for all."""
    if "chunked" in layer_type:
        return get_count(config, "attention_chunk_size")
    if compression is None and not is_local(layer_type):
        return None
    window = get_count(config, "sliding_window")
    local_attention = get_count(config, "local_attention")  # ModernBERT: on both sides of a token
    return window or (local_attention // 2 if local_attention else None)


def _parse_indexer_dim(config: Mapping[str, Any], index: int, layer_type: str) -> int:
    """Return the numbers that the indexer of a layer keeps for each token, 0 without an indexer of its own."""
    if layer_type not in _INDEXED_LAYER_TYPES or not _has_own_indexer(config, index):
        return 0
    heads = get_count(config, "indexer_kv_heads") or 1
    return heads * (get_count(config, "index_head_dim", "indexer_head_dim") or 0)


def _has_own_indexer(config: Mapping[str, Any], index: int) -> bool:
    """Return whether a layer selects tokens itself and does not reuse the selection of an earlier layer.

    Source: `indexer_types` in configuration_glm_moe_dsa.py and configuration_hy_v4.py of transformers 5.23.
    """
    types = config.get("indexer_types") or config.get("index_topk_pattern")
    if isinstance(types, list | str):
        return index >= len(types) or types[index] not in ("shared", "S")
    default_period = architectures.INDEXER_PERIOD.get(str(config.get("model_type")), 1)
    period = get_count(config, "index_topk_freq") or default_period
    offset = get_count(config, "index_skip_topk_offset") or 2
    return max(index - offset + 1, 0) % period == 0
