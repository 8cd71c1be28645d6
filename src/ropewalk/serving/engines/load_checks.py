"""Configurations that the configuration classes of transformers refuse.

Engines that load a config.json through these classes never see such a file. Which architectures refuse what is listed
in config/architectures.py.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ropewalk.config.architectures import (
    CONFIG_REJECTS_SCALING_MODEL_TYPES,
    LONGROPE_ONLY_MODEL_TYPES,
    SHORT_LONG_MSCALE_MODEL_TYPES,
    UNSET_HEAD_DIM_MODEL_TYPES,
)
from ropewalk.serving.engines.base import Config, EngineConfigError
from ropewalk.serving.engines.rope_dict import get_rope_type

_TRANSFORMERS4_LONGROPE_KEYS = {"type", "short_factor", "long_factor"}


def check_loads_in_transformers(engine: str, version: int, text: Config) -> None:
    """Check that the architecture's configuration class accepts the text part of a config.json.

    Args:
        engine: title of the engine that loads through the class, for errors.
        version: major version of transformers, 4 or 5.
        text: the text part.

    Raises EngineConfigError if the class refuses it.
    """
    for rope_dict in _checked_rope_dicts(text, version):
        _check_rope_dict(engine, version, text, rope_dict)


def _check_rope_dict(engine: str, version: int, text: Config, rope_dict: Mapping[str, Any]) -> None:
    """Raise EngineConfigError if the class refuses this rope dict; the arguments are those of the function above."""
    model_type, rope_type = text.get("model_type"), get_rope_type(rope_dict)
    field = "rope_scaling" if version == 4 else "rope_parameters"
    why = f", which the class of {model_type} requires"
    if model_type in LONGROPE_ONLY_MODEL_TYPES and version == 4:
        if set(rope_dict) != _TRANSFORMERS4_LONGROPE_KEYS or rope_type not in ("longrope", "su", "yarn"):
            keys = ", ".join(map(str, rope_dict))
            raise EngineConfigError(engine, field, keys, f"only type (longrope), short_factor and long_factor{why}")
    elif model_type in LONGROPE_ONLY_MODEL_TYPES and rope_type not in ("default", "longrope", "su"):
        raise EngineConfigError(engine, field, rope_type, f"longrope or default{why}")
    if model_type in SHORT_LONG_MSCALE_MODEL_TYPES and (version == 4 or rope_type != "default"):
        for key in ("short_mscale", "long_mscale"):
            if not isinstance(rope_dict.get(key), int | float):
                raise EngineConfigError(engine, f"{field}: {key}", rope_dict.get(key), f"a number{why}")
    if model_type in CONFIG_REJECTS_SCALING_MODEL_TYPES and rope_type != "default":
        raise EngineConfigError(engine, field, rope_type, f"default{why}")
    if version == 5 and rope_type == "longrope":
        if model_type in UNSET_HEAD_DIM_MODEL_TYPES and text.get("head_dim") is None:
            raise EngineConfigError(engine, "head_dim", None, f"a number together with longrope{why}")
        if text.get("per_layer_config"):
            expected = f"another type, since head sizes differ between layers{why}"
            raise EngineConfigError(engine, field, rope_type, expected)


def _checked_rope_dicts(text: Config, version: int) -> list[Mapping[str, Any]]:
    """Return the rope dicts that the class validates: one, or one for each layer type. It skips what is not a dict."""
    rope_dict = text.get("rope_scaling")
    if not rope_dict and version == 5:
        rope_dict = text.get("rope_parameters")
    if not rope_dict or not isinstance(rope_dict, Mapping):
        return []
    by_layer_type = [value for value in rope_dict.values() if isinstance(value, Mapping)]
    return by_layer_type or [rope_dict]
