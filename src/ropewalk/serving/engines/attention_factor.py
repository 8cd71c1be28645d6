"""Encode an attention factor for engines that ignore `attention_factor`; see rope_dict.py for what they compute."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from ropewalk.config import LayerRope
from ropewalk.scaling.yarn import YaRN, yarn_mscale

_TOLERANCE = 5e-8  # relative; smaller differences vanish in float32
_MAX_TRIES = 4096
_ORIGINAL_LENGTH = "original_max_position_embeddings"


def encode_attention_factor_as_mscale(scaling: YaRN, layer: LayerRope) -> dict[str, Any] | None:
    """Return the rope dict of a YaRN for engines that ignore `attention_factor` but use `mscale_ratio`."""
    rope_dict = scaling.to_rope_parameters(layer.rope)
    default_increase = yarn_mscale(scaling.factor) - 1
    if rope_dict is None or rope_dict["rope_type"] != "yarn" or scaling.mscale_all_dim or not default_increase:
        return rope_dict
    mscale = (scaling.frequencies(layer.rope).attention_factor - 1) / default_increase
    rope_dict.pop("attention_factor", None)
    return {**rope_dict, "mscale": mscale, "mscale_all_dim": 0.0}


def encode_attention_factor_as_lengths(rope_dict: dict[str, Any], length: int) -> dict[str, Any] | None:
    """Return a longrope dict whose two lengths give its attention factor, for texts of up to `length` tokens.

    `derive_declared_length` computes the second length. If the two lists are equal, no text is compared with the
    original length L, so any L may be written: choose the smallest for which the declared length D = L^(a^2), rounded
    to an integer, is at least `length` and gives the attention factor a to the precision of float32.

    None for equal lists with an attention factor below 1 or from 2 on.
    """
    if rope_dict["short_factor"] != rope_dict["long_factor"]:
        return rope_dict
    attention_factor = rope_dict["attention_factor"]
    power = attention_factor**2
    if not 1 <= power < 4:
        return None
    smallest = max(2, math.ceil(length ** (1 / power)))
    for original in range(smallest, smallest + _MAX_TRIES):
        derived = math.sqrt(math.log(round(original**power)) / math.log(original))
        if abs(derived / attention_factor - 1) < _TOLERANCE:
            return {**rope_dict, _ORIGINAL_LENGTH: original}
    return {**rope_dict, _ORIGINAL_LENGTH: smallest}


def derive_declared_length(rope_dict: Mapping[str, Any]) -> int:
    """Return the max_position_embeddings for which a longrope dict's lengths give its attention factor."""
    return round(math.pow(rope_dict[_ORIGINAL_LENGTH], max(1.0, rope_dict["attention_factor"] ** 2)))
