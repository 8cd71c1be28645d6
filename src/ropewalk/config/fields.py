"""Read fields of a transformers configuration that architectures store under different names."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ropewalk.errors import InputError

NUM_HEADS_FIELDS = ("num_attention_heads", "n_head", "n_heads")


def get_first(config: Mapping[str, Any], *names: str) -> Any:
    """Return the value of the first of these fields that is set, or None."""
    return next((config[name] for name in names if config.get(name) is not None), None)


def get_count(config: Mapping[str, Any], *names: str) -> int | None:
    """Return the first of these fields that is set and not 0, or None.

    Raises InputError if its value is not a whole number above 0.
    """
    name = next((name for name in names if config.get(name) not in (None, 0)), None)
    if name is None:
        return None
    value = config[name]
    if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= 2**53:
        raise InputError(name, value, "a whole number from 1 to 2^53")
    return value


def compute_head_dim(config: Mapping[str, Any]) -> int | None:
    """Return the size of a head, stated or computed from the width of the model; None if the file omits both."""
    head_dim = get_count(config, "head_dim", "attention_head_dim", "kv_channels")
    hidden_size, heads = get_count(config, "hidden_size", "n_embd", "d_model"), get_count(config, *NUM_HEADS_FIELDS)
    return head_dim or (hidden_size // heads if hidden_size and heads else None)
