"""Read fields of a transformers configuration that architectures store under different names."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ropewalk.errors import InputError

# The names that architectures use for a field, by the name that transformers uses in all classes.
FIELD_NAMES = {
    "hidden_size": ("n_embd", "d_model"),
    "num_hidden_layers": ("n_layer", "n_layers", "num_layers"),
    "num_attention_heads": ("n_head", "n_heads"),
    "num_key_value_heads": ("num_kv_heads", "n_kv_heads", "num_attention_groups"),
    "head_dim": ("attention_head_dim", "kv_channels"),
    "max_position_embeddings": ("n_positions", "max_seq_len", "model_max_length", "seq_length"),
    "rope_theta": ("rotary_emb_base", "rope_base", "global_rope_theta"),
    "partial_rotary_factor": ("rotary_pct", "partial_rotary_factors"),
    "local_rope_theta": ("rope_local_base_freq", "swa_rope_theta"),
    "sliding_window": ("sliding_window_size", "attention_window_size"),
    "layer_types": ("layers_block_type",),
}


def rename_fields(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the configuration with the names that transformers uses in all classes."""
    renamed = dict(config)
    for name, others in FIELD_NAMES.items():
        for other in others:
            value = renamed.pop(other, None)
            if value is not None and renamed.get(name) in (None, 0):
                renamed[name] = value
    return renamed


def get_first(config: Mapping[str, Any], *names: str) -> Any:
    """Return the value of the first of these fields that is set, or None."""
    return next((config[name] for name in names if config.get(name) is not None), None)


def get_count(config: Mapping[str, Any], *names: str) -> int | None:
    """Return the first of these fields that is set and not 0, or None.

    Raises InputError if its value is not a whole number above 0.
    """
    for name in names:
        value = config.get(name)
        if value in (None, 0):
            continue
        if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= 2**53:
            raise InputError(name, value, "a whole number from 1 to 2^53")
        return value
    return None


def compute_head_dim(config: Mapping[str, Any]) -> int | None:
    """Return the size of a head, stated or computed from the width of the model; None if both are missing.

    `config`: a configuration with the names of `rename_fields`.
    """
    head_dim, hidden_size = get_count(config, "head_dim"), get_count(config, "hidden_size")
    heads = get_count(config, "num_attention_heads")
    return head_dim or (hidden_size // heads if hidden_size and heads else None)
