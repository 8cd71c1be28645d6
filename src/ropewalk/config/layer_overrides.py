"""Sizes that differ between the layers of a model, in normalized fields.

They are stated for a layer type (Gemma 4: `global_head_dim`; MiMo: `swa_head_dim` and others) or for single layers
(`per_layer_config`).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ropewalk.config import architectures
from ropewalk.config.fields import get_count
from ropewalk.config.layer_types import is_local

Fields = Mapping[str, Any]


def override_for_layer_type(fields: Fields, layer_type: str) -> Fields:
    """Return the fields with the sizes of a layer type, those of one of its layers in `per_layer_config` included."""
    layer_types = fields.get("layer_types") or ()
    for index in _layers_with_overrides(fields):
        if tuple(layer_types[index : index + 1]) == (layer_type,):
            return override_for_layer(fields, index, layer_type)
    return override_for_layer(fields, None, layer_type)


def override_for_layer(fields: Fields, index: int | None, layer_type: str) -> Fields:
    """Return the fields with the sizes of one layer of a type; without an index, with those of the type only."""
    overrides: dict[str, Any] = {}
    if is_local(layer_type):
        multiplier = architectures.SLIDING_KV_HEADS_MULTIPLIER.get(str(fields.get("model_type")))
        if multiplier is not None:
            overrides["num_key_value_heads"] = multiplier * (get_count(fields, "num_key_value_heads") or 0)
        overrides |= {name[4:]: value for name, value in fields.items() if name.startswith("swa_") and value}
    else:
        overrides["head_dim"] = fields.get("global_head_dim")
        if fields.get("attention_k_eq_v", True):
            overrides["num_key_value_heads"] = fields.get("num_global_key_value_heads")
    if index is not None:
        overrides |= _layers_with_overrides(fields).get(index, {})
    return {**fields, **{name: value for name, value in overrides.items() if value is not None}}


def _layers_with_overrides(fields: Fields) -> dict[int, Mapping[str, Any]]:
    """Return the overrides of single layers by the index of the layer, which transformers writes as 5 or "05"."""
    per_layer_config = fields.get("per_layer_config")
    if not isinstance(per_layer_config, Mapping):
        return {}
    return {
        int(index): overrides
        for index, overrides in per_layer_config.items()
        if str(index).isdecimal() and isinstance(overrides, Mapping)
    }
