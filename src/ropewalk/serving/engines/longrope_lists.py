"""LongRoPE in engines that derive its attention factor from two lengths, or serve one of its lists at every length.

Such an engine ignores `attention_factor` and computes sqrt(1 + ln(D / L) / ln L), where D is max_position_embeddings
and L is original_max_position_embeddings.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

from ropewalk.config import LayerRope
from ropewalk.scaling.longrope import LongRoPE
from ropewalk.serving.engines.base import EngineConfigError

_TOLERANCE = 5e-8  # relative; smaller differences vanish in float32
_MAX_TRIES = 4096


def read_longrope(engine: str, rope_dict: Mapping[str, Any], original: int | None, declared: int | None) -> LongRoPE:
    """Return the LongRoPE of a rope dict, with the attention factor that follows from the two lengths.

    Args:
        engine: its title, for errors.
        rope_dict: holds short_factor and long_factor.
        original: original_max_position_embeddings, tokens, wherever the engine looks for it.
        declared: max_position_embeddings, tokens.

    Raises EngineConfigError if a list or a length is missing.
    """
    if not original or not declared:
        expected = "the length in tokens that the model was trained on"
        raise EngineConfigError(engine, "original_max_position_embeddings", original, expected)
    for key in ("short_factor", "long_factor"):
        if key not in rope_dict:
            raise EngineConfigError(engine, key, None, "a list with one number for each pair of dimensions")
    short, long = tuple(rope_dict["short_factor"]), tuple(rope_dict["long_factor"])
    return LongRoPE(short, long, factor=max(1.0, declared / original), original_length=original)


def with_one_list(scaling: LongRoPE, use_long: bool) -> LongRoPE:
    """Return the scaling of an engine that serves the long list, or the short one, at every length."""
    divisors = scaling.long_factor if use_long else scaling.short_factor
    return dataclasses.replace(scaling, short_factor=divisors, long_factor=divisors)


def encode_attention_factor_as_lengths(scaling: LongRoPE, layer: LayerRope, length: int) -> dict[str, Any] | None:
    """Return a rope dict whose two lengths give the attention factor of a LongRoPE.

    `derive_declared_length` computes the second length. If the two lists are equal, no text is compared with the
    original length L, so any L may be written: choose the smallest for which the declared length D = L^(a^2), rounded
    to an integer, is at least `length` and gives the attention factor a to the precision of float32.

    None for attention factors below 1 and from 2 on.
    """
    rope_dict = scaling.to_rope_parameters(layer.rope)
    if rope_dict is None or scaling.short_factor != scaling.long_factor:
        return rope_dict
    attention_factor = rope_dict["attention_factor"]
    power = attention_factor**2
    if not 1 <= power < 4:
        return None
    smallest = max(2, math.ceil(length ** (1 / power)))
    chosen = smallest
    for original in range(smallest, smallest + _MAX_TRIES):
        derived = math.sqrt(math.log(round(original**power)) / math.log(original))
        if abs(derived / attention_factor - 1) < _TOLERANCE:
            chosen = original
            break
    return {**rope_dict, "original_max_position_embeddings": chosen}


def derive_declared_length(rope_dict: Mapping[str, Any]) -> int:
    """Return the max_position_embeddings for which a longrope dict's lengths give its attention factor."""
    original, attention_factor = (
        int(rope_dict["original_max_position_embeddings"]),
        float(rope_dict["attention_factor"]),
    )
    return round(math.pow(original, max(1.0, attention_factor**2)))
