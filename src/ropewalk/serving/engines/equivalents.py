"""Express a static scaling by another method that more engines support, with the same frequencies.

The results are guesses: `encode` checks whether the engine's interpretation has the expected frequencies.
"""

from __future__ import annotations

import math
from typing import Any

from ropewalk.config import LayerRope, compute_layer_frequencies
from ropewalk.config.scaled_fields import frequencies_match
from ropewalk.frequencies import Frequencies
from ropewalk.rope import Rope
from ropewalk.scaling import Scaling
from ropewalk.scaling.abf import ABF
from ropewalk.scaling.longrope import LongRoPE
from ropewalk.scaling.yarn import YaRN


def base_of_slowest_pair(rope: Rope, frequencies: Frequencies) -> float:
    """Return the base b at which the slowest pair has its given frequency, theta = b^(-(d-2)/d)."""
    return math.pow(frequencies.inv_freq[-1], -rope.dim / (rope.dim - 2))


def encode_as_base(scaling: Scaling, layer: LayerRope, length: int) -> dict[str, Any] | None:
    """Return a rope dict with another base that gives the same frequencies, or None."""
    frequencies = _static_frequencies(scaling, layer, length)
    if frequencies is None or layer.rope.dim < 4:
        return None
    base = round(base_of_slowest_pair(layer.rope, frequencies), 6)
    if base <= 1 or not frequencies_match(ABF(base=base).frequencies(layer.rope), frequencies):
        return None
    return {"rope_type": "default", "rope_theta": base}


def encode_as_yarn(scaling: Scaling, layer: LayerRope, length: int) -> dict[str, Any] | None:
    """Return a YaRN dict that gives the same frequencies, or None. NTK-by-parts is YaRN with attention factor 1."""
    frequencies = _static_frequencies(scaling, layer, length)
    if frequencies is None:
        return None
    factor = float(layer.rope.inv_freq[-1] / frequencies.inv_freq[-1])  # YaRN divides the slowest pair by the factor
    if factor < 1 or not (layer.rope.original_length or scaling.original_length):
        return None
    ramp_options = ("beta_fast", "beta_slow", "truncate", "critical")
    options = {name: getattr(scaling, name) for name in ramp_options if hasattr(scaling, name)}
    yarn = YaRN(
        factor=factor,
        attention_factor=frequencies.attention_factor,
        original_length=scaling.original_length,
        **options,
    )
    if not frequencies_match(yarn.frequencies(layer.rope), frequencies):
        return None
    return yarn.to_rope_parameters(layer.rope)


def encode_as_longrope(scaling: Scaling, layer: LayerRope, length: int) -> dict[str, Any] | None:
    """Return a longrope dict with two equal lists that gives the same frequencies, or None."""
    rotates_all_pairs = compute_layer_frequencies(layer.scaling, layer, length).inv_freq.all()
    rope_dict = scaling.to_rope_parameters(layer.rope) if rotates_all_pairs and not scaling.is_dynamic else None
    if rope_dict and rope_dict["rope_type"] == "longrope":  # unlike the lists below, its own may leave a pair unrotated
        return rope_dict
    frequencies = _static_frequencies(scaling, layer, length)
    if frequencies is None or frequencies.softmax_factor != 1:
        return None
    factor = scaling.extension_factor(layer.rope)
    lists = LongRoPE.from_frequencies(layer.rope, frequencies, factor, scaling.original_length)
    return lists.to_rope_parameters(layer.rope)


def _static_frequencies(scaling: Scaling, layer: LayerRope, length: int) -> Frequencies | None:
    """Return the frequencies of a static scaling that rotates every pair, or None."""
    if scaling.is_dynamic:
        return None
    frequencies = compute_layer_frequencies(scaling, layer, length)
    return frequencies if frequencies.inv_freq.all() else None
