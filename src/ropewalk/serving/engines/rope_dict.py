"""Read a rope dict (`rope_scaling` or `rope_parameters` of a config.json) in the ways that several engines share.

YaRN: DeepSeek's pair `mscale` and `mscale_all_dim` (arXiv 2405.04434). With m(s, c) = 0.1 c ln s + 1, the attention
factor is m(s, mscale) / m(s, mscale_all_dim). DeepSeek's attention also multiplies its softmax scale by
m(s, mscale_all_dim)^2.

LongRoPE: many engines ignore `attention_factor` and compute sqrt(1 + ln(D / L) / ln L), where D is
max_position_embeddings and L is original_max_position_embeddings. Many serve one of its two lists at every length.

`attention_factor.py` writes rope dicts for these engines.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from ropewalk.errors import InputError
from ropewalk.rope import Rope
from ropewalk.scaling.llama3 import Llama3
from ropewalk.scaling.longrope import LongRoPE
from ropewalk.scaling.yarn import YaRN, yarn_mscale, yarn_mscale_ratio


def require_number(rope_dict: Mapping[str, Any], key: str) -> float:
    """Return the number under a key of a rope dict. Raises InputError if it is missing or not a number."""
    value = rope_dict.get(key)
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise InputError(key, value, "a number")
    return float(value)


def read_llama3(rope_dict: Mapping[str, Any]) -> Llama3:
    """Return the Llama 3 scaling of a rope dict. Raises InputError if one of its four numbers is missing."""
    return Llama3(
        factor=require_number(rope_dict, "factor"),
        low_freq_factor=require_number(rope_dict, "low_freq_factor"),
        high_freq_factor=require_number(rope_dict, "high_freq_factor"),
        original_length=int(require_number(rope_dict, "original_max_position_embeddings")),
    )


def read_longrope(rope_dict: Mapping[str, Any], original: int | None, declared: int | None) -> LongRoPE:
    """Return the LongRoPE of a rope dict, with the attention factor that follows from the two lengths.

    Args:
        rope_dict: holds short_factor and long_factor.
        original: original_max_position_embeddings, tokens, wherever the engine looks for it.
        declared: max_position_embeddings, tokens.

    Raises InputError if a list or a length is missing.
    """
    if not original or not declared:
        expected = "the length in tokens that the model was trained on"
        raise InputError("original_max_position_embeddings", original, expected)
    for key in ("short_factor", "long_factor"):
        if key not in rope_dict:
            raise InputError(key, None, "a list with one number for each pair of dimensions")
    short, long = tuple(rope_dict["short_factor"]), tuple(rope_dict["long_factor"])
    return LongRoPE(short, long, factor=max(1.0, declared / original), original_length=original)


def with_one_list(scaling: LongRoPE, use_long: bool) -> LongRoPE:
    """Return the scaling of an engine that serves the long list, or the short one, at every length."""
    divisors = scaling.long_factor if use_long else scaling.short_factor
    return dataclasses.replace(scaling, short_factor=divisors, long_factor=divisors)


def mscale_ratio(rope_dict: Mapping[str, Any], factor: float) -> float:
    """Return the attention factor m(s, mscale) / m(s, mscale_all_dim), with defaults 1 and 0 as in DeepSeek's code."""
    mscale, mscale_all_dim = rope_dict.get("mscale"), rope_dict.get("mscale_all_dim")
    return yarn_mscale_ratio(
        factor, 1.0 if mscale is None else float(mscale), 0.0 if mscale_all_dim is None else float(mscale_all_dim)
    )


def read_deepseek_yarn(rope_dict: Mapping[str, Any], factor: float) -> YaRN:
    """Return YaRN with the options and defaults of DeepSeek's code, whatever the type of the rope dict."""
    return YaRN(
        factor=factor,
        beta_fast=float(rope_dict.get("beta_fast", 32)),
        beta_slow=float(rope_dict.get("beta_slow", 1)),
        attention_factor=mscale_ratio(rope_dict, factor),
        mscale_all_dim=rope_dict.get("mscale_all_dim") or None,
    )


def mscale_pair_ratio(rope_dict: Mapping[str, Any], factor: float) -> float:
    """Return `mscale_ratio` if the rope dict contains both numbers, where 0 counts as present; otherwise m(s, 1)."""
    has_pair = rope_dict.get("mscale") is not None and rope_dict.get("mscale_all_dim") is not None
    return mscale_ratio(rope_dict, factor) if has_pair else yarn_mscale(factor)


def drop_softmax_factor(scaling: YaRN, rope: Rope) -> YaRN:
    """Return the scaling with the same attention factor, for attention that leaves its softmax scale alone."""
    attention_factor = scaling.frequencies(rope).attention_factor
    return dataclasses.replace(scaling, mscale=None, mscale_all_dim=None, attention_factor=attention_factor)
