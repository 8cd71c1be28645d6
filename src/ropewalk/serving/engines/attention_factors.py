"""Attention factors for engines that read none: YaRN's by its mscale, LongRoPE's by the lengths it follows from."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from ropewalk.config import LayerRope
from ropewalk.errors import InputError
from ropewalk.scaling.longrope import LongRoPE
from ropewalk.scaling.yarn import YaRN, yarn_mscale

_EXACT = 5e-8  # below what float32 tells apart
_TRIES = 4096


def mscale_ratio(said: Mapping[str, Any], factor: float) -> float:
    """m(s, mscale) / m(s, mscale_all_dim), 1 and 0 where they are not said: DeepSeek's own reading of its pair."""
    mscale, all_dim = (default if said.get(key) is None else float(said[key]) for key, default in _DEFAULTS)
    return yarn_mscale(factor, mscale) / yarn_mscale(factor, all_dim)


_DEFAULTS = (("mscale", 1.0), ("mscale_all_dim", 0.0))


def by_mscale(scaling: YaRN, layer: LayerRope) -> dict[str, Any] | None:
    """The rope dict of a YaRN with an attention factor of its own, said so that `mscale_ratio` gives it."""
    said = scaling.rope_parameters(layer.rope)
    natural = yarn_mscale(scaling.factor) - 1
    if said is None or said["rope_type"] != "yarn" or scaling.mscale_all_dim or not natural:
        return said
    mscale = (scaling.frequencies(layer.rope).attention_factor - 1) / natural
    said.pop("attention_factor", None)
    return {**said, "mscale": mscale, "mscale_all_dim": 0.0}


def by_lengths(scaling: LongRoPE, layer: LayerRope, length: int) -> dict[str, Any] | None:
    """The rope dict of LongRoPE for readers that take its attention factor from two lengths.

    `stretched` is the other of the two. Where the lists are equal no text is measured against the original length,
    so it is chosen: such that both are whole numbers, and what is declared is `length` at least.
    """
    said = scaling.rope_parameters(layer.rope)
    if said is None or scaling.short_factor != scaling.long_factor:
        return said
    power = said["attention_factor"] ** 2
    if not 1 <= power < 4:
        return None
    least = max(2, math.ceil(length ** (1 / power)))

    def off(original: int) -> float:
        return abs(math.sqrt(math.log(round(original**power)) / math.log(original)) / math.sqrt(power) - 1)

    tried = range(least, least + _TRIES)
    original = next((each for each in tried if off(each) < _EXACT), least)
    return {**said, "original_max_position_embeddings": original}


def stretched(said: Mapping[str, Any]) -> int:
    """The declared length D at which sqrt(1 + ln(D/L) / ln L) is the attention factor of a longrope dict."""
    original, factor = int(said["original_max_position_embeddings"]), float(said["attention_factor"])
    return round(math.pow(original, max(1.0, factor**2)))


def by_declared(title: str, said: Mapping[str, Any], original: int | None, declared: int | None) -> LongRoPE:
    """The LongRoPE of readers that take the attention factor from the declared over the original length.

    Raises InputError, in the engine's name, where a list or a length is missing.
    """
    if not original or not declared:
        raise InputError(f"{title}: original_max_position_embeddings", original, "the tokens it was trained on")
    for key in ("short_factor", "long_factor"):
        if key not in said:
            raise InputError(f"{title}: {key}", None, "a list of numbers, one for each pair")
    short, long = tuple(said["short_factor"]), tuple(said["long_factor"])
    return LongRoPE(short, long, max(1.0, declared / original), original_length=original)
