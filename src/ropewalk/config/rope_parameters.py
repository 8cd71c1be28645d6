"""Build the fields of a transformers configuration that apply a scaling: rope_parameters and the declared length."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ropewalk.config.normalize import get_rope_type
from ropewalk.rope import Rope
from ropewalk.scaling.base import Scaling

# Keys of a rope dict that belong to its scaling (or to the base). All others, such as mrope_section, belong to the
# model and stay when the scaling is replaced.
SCALING_KEYS = {
    "rope_type", "type", "factor", "alpha", "attention_factor", "beta_fast", "beta_slow", "mscale", "mscale_all_dim",
    "truncate", "short_factor", "long_factor", "low_freq_factor", "high_freq_factor", "rope_theta",
    "attn_factor", "short_mscale", "long_mscale", "factors",
}  # fmt: skip

PER_LAYER_FIELD = "ropewalk_scaling"  # the scaling of each layer type, if one has a set of frequencies for each layer


def build_rope_parameters(
    scaling: Scaling, rope: Rope, old_rope_dict: Mapping[str, Any] | None = None, length: int | None = None
) -> dict[str, Any] | None:
    """Build the `rope_parameters` dict that makes transformers 5 compute the frequencies of a scaling.

    Args:
        scaling: the scaling.
        rope: the unscaled embedding.
        old_rope_dict: the dict that the result replaces; keys that belong to the model are kept.
        length: the text length, in tokens, at which a dynamic scaling is fixed.

    Returns None if transformers cannot express the scaling.
    """
    new_options = scaling.to_rope_parameters(rope, length)
    if new_options is None:
        return None
    old_rope_dict = old_rope_dict or {}
    kept = {key: value for key, value in old_rope_dict.items() if key not in SCALING_KEYS}
    # transformers uses partial_rotary_factor for two things: the rotary fraction of a head, which belongs to the model,
    # and, with the type proportional, the option p of the scaling. One dict cannot express both.
    rotary_fraction = kept.pop("partial_rotary_factor", None)
    if rotary_fraction is not None and get_rope_type(old_rope_dict) != "proportional":
        if new_options["rope_type"] == "proportional" and rotary_fraction != 1:
            return None
        kept["partial_rotary_factor"] = rotary_fraction
    return {"rope_theta": rope.base, **kept, **new_options}


def compute_max_position_embeddings(
    scaling: Scaling, rope: Rope, rope_dict: Mapping[str, Any], length: int | None = None
) -> int:
    """Return the `max_position_embeddings` to declare beside a rope dict, in tokens.

    If the rope dict contains the original length, this is the length after scaling. If it does not (linear, dynamic),
    readers take the original length from max_position_embeddings, and vLLM multiplies it by the factor. The declared
    length must then be the original one.

    Args:
        scaling: the scaling.
        rope: the unscaled embedding.
        rope_dict: the result of `build_rope_parameters`.
        length: the text length, in tokens, at which a dynamic scaling is fixed.
    """
    if not rope_dict.get("original_max_position_embeddings"):
        return scaling.resolve_original_length(rope)
    return round(scaling.scaled_length(rope, length))
