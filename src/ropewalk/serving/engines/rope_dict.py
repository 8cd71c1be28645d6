"""Read a rope dict (`rope_scaling` or `rope_parameters` of a config.json) on behalf of an engine."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ropewalk.scaling.llama3 import Llama3
from ropewalk.serving.engines.base import EngineConfigError


def get_rope_type(rope_dict: Mapping[str, Any]) -> str:
    """Return the rope type, under its key of transformers 5 or the older `type`; "default" if there is none."""
    return str(rope_dict.get("rope_type") or rope_dict.get("type") or "default")


def require_number(engine: str, rope_dict: Mapping[str, Any], key: str) -> float:
    """Return a number that the engine requires in a rope dict.

    Raises EngineConfigError, with `engine` as its title, if it is missing or not a number.
    """
    value = rope_dict.get(key)
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise EngineConfigError(engine, key, value, "a number")
    return float(value)


def read_llama3(engine: str, rope_dict: Mapping[str, Any]) -> Llama3:
    """Return the Llama 3 scaling of a rope dict for an engine that requires all four of its fields.

    Raises EngineConfigError, with `engine` as its title, if one is missing.
    """
    return Llama3(
        factor=require_number(engine, rope_dict, "factor"),
        low_freq_factor=require_number(engine, rope_dict, "low_freq_factor"),
        high_freq_factor=require_number(engine, rope_dict, "high_freq_factor"),
        original_length=int(require_number(engine, rope_dict, "original_max_position_embeddings")),
    )
