"""DeepSeek's pair `mscale` and `mscale_all_dim` in YaRN, as engines read it (arXiv 2405.04434).

With m(s, c) = 0.1 c ln s + 1, the attention factor is m(s, mscale) / m(s, mscale_all_dim). DeepSeek's attention also
multiplies its softmax scale by m(s, mscale_all_dim)^2.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from ropewalk.config import LayerRope
from ropewalk.rope import Rope
from ropewalk.scaling.yarn import YaRN, yarn_mscale


def mscale_ratio(rope_dict: Mapping[str, Any], factor: float) -> float:
    """Return the attention factor m(s, mscale) / m(s, mscale_all_dim), with defaults 1 and 0 as in DeepSeek's code."""
    mscale, mscale_all_dim = rope_dict.get("mscale"), rope_dict.get("mscale_all_dim")
    numerator = yarn_mscale(factor, 1.0 if mscale is None else float(mscale))
    return numerator / yarn_mscale(factor, 0.0 if mscale_all_dim is None else float(mscale_all_dim))


def has_mscale_pair(rope_dict: Mapping[str, Any]) -> bool:
    """Return whether a rope dict contains both `mscale` and `mscale_all_dim`; 0 counts as present."""
    return rope_dict.get("mscale") is not None and rope_dict.get("mscale_all_dim") is not None


def encode_attention_factor_as_mscale(scaling: YaRN, layer: LayerRope) -> dict[str, Any] | None:
    """Return the rope dict of a YaRN for engines that ignore `attention_factor` but use `mscale_ratio`."""
    rope_dict = scaling.to_rope_parameters(layer.rope)
    default_increase = yarn_mscale(scaling.factor) - 1
    if rope_dict is None or rope_dict["rope_type"] != "yarn" or scaling.mscale_all_dim or not default_increase:
        return rope_dict
    mscale = (scaling.frequencies(layer.rope).attention_factor - 1) / default_increase
    rope_dict.pop("attention_factor", None)
    return {**rope_dict, "mscale": mscale, "mscale_all_dim": 0.0}


def drop_softmax_factor(scaling: YaRN, rope: Rope) -> YaRN:
    """Return the scaling with the same attention factor, for attention that leaves its softmax scale alone."""
    attention_factor = scaling.frequencies(rope).attention_factor
    return dataclasses.replace(scaling, mscale=None, mscale_all_dim=None, attention_factor=attention_factor)
