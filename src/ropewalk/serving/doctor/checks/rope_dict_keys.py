"""Keys and values of the rope dict: of the wrong type, misspelled, ignored, or given in two places."""

from __future__ import annotations

import json
from difflib import get_close_matches
from typing import Any

from ropewalk.scaling import from_rope_dict
from ropewalk.serving.doctor.examined_config import ExaminedConfig, RopeDict
from ropewalk.serving.doctor.fault_kinds import Fault, Faults, fault_kind, for_each_rope_dict
from ropewalk.serving.doctor.rope_type_options import ALL_OPTIONS, ROPE_TYPE_OPTIONS
from ropewalk.serving.doctor.values import finite_number, parse_number

_ROPE_FIELDS = ("rope_scaling", "rope_parameters")
# Keys of a rope dict that belong to the model and not to a scaling.
_MODEL_KEYS = {
    "rope_type", "type", "rope_theta", "partial_rotary_factor", "mrope_section", "mrope_interleaved", "interleaved",
    "finetuned", "llama_4_scaling_beta", "max_position_embeddings", "original_max_position_embeddings",
    "extrapolation_factor", "apply_yarn_scaling", "fope_init_factor", "fope_sep_head", "num_inv_freq",
}  # fmt: skip
# Hunyuan writes these beside `alpha` and uses only alpha.
_IGNORED_BESIDE_ALPHA = {"beta_fast", "beta_slow", "mscale", "mscale_all_dim"}
# Names of the same parameter in other configurations and libraries.
_OTHER_NAMES = {
    "scaling_factor": "factor", "scale": "factor", "rope_factor": "factor", "base": "rope_theta", "theta": "rope_theta",
    "original_length": "original_max_position_embeddings",
    "original_context_length": "original_max_position_embeddings",
    "original_max_positions": "original_max_position_embeddings",
}  # fmt: skip
_NUMBER_KEYS = (
    "factor", "attention_factor", "beta_fast", "beta_slow", "mscale", "mscale_all_dim", "low_freq_factor",
    "high_freq_factor", "rope_theta", "partial_rotary_factor", "alpha",
)  # fmt: skip
_MISSPELLING_SIMILARITY = 0.8


@fault_kind("not-an-object", "wrong")
def not_an_object(config: ExaminedConfig) -> Faults:
    """`rope_scaling` or `rope_parameters` is not an object."""
    for name in _ROPE_FIELDS:
        value, path = config.text.get(name), config.path_of(name)
        if value and not isinstance(value, dict):
            yield Fault(path, value, "transformers and the engines refuse it", {path: _parse_rope_dict(value)})


@fault_kind("not-a-number", "wrong")
def not_a_number(config: ExaminedConfig) -> Faults:
    """A number is written as text, is not finite, or is too large."""
    values = [(config.path_of(name), config.text.get(name)) for name in ("rope_theta", "partial_rotary_factor")]
    values += [(rope.path_of(key), rope.values.get(key)) for rope in config.rope_dicts for key in _NUMBER_KEYS]
    for path, value in values:
        if value is not None and finite_number(value) is None:
            means = "some engines refuse it, others fail when they compute with it"
            yield Fault(path, value, means, {path: parse_number(value)})


@fault_kind("key-misspelled", "wrong")
@for_each_rope_dict(*ROPE_TYPE_OPTIONS)
def key_misspelled(config: ExaminedConfig, rope_dict: RopeDict) -> Faults:
    """A key is misspelled, or is the name of the parameter in another library."""
    for key, intended in _unused_keys(rope_dict).items():
        if intended is not None:
            path, value = rope_dict.path_of(key), rope_dict.values[key]
            means = f"the key is ignored; the parameter is called {intended}"
            yield Fault(path, value, means, {path: None, rope_dict.path_of(intended): value})


@fault_kind("key-ignored", "suspicious")
@for_each_rope_dict(*ROPE_TYPE_OPTIONS)
def key_ignored(config: ExaminedConfig, rope_dict: RopeDict) -> Faults:
    """A key belongs to another method, or to none."""
    if rope_dict.method == "default" and not (rope_dict.values.get("rope_type") or rope_dict.values.get("type")):
        return  # the type itself is missing: type-missing
    for key, intended in _unused_keys(rope_dict).items():
        if intended is None and rope_dict.values[key] is not None:
            path = rope_dict.path_of(key)
            yield Fault(path, rope_dict.values[key], f"{rope_dict.method} ignores it", {path: None})


@fault_kind("scaling-twice", "wrong")
def scaling_twice(config: ExaminedConfig) -> Faults:
    """`rope_scaling` and `rope_parameters` contradict each other."""
    old, new = (config.text.get(name) for name in _ROPE_FIELDS)
    if not (isinstance(old, dict) and isinstance(new, dict) and old and new):
        return
    old_path, new_path = (config.path_of(name) for name in _ROPE_FIELDS)
    with_old, with_new = config.with_changes({new_path: None}), config.with_changes({old_path: None})
    if _ropes(with_old) != _ropes(with_new):
        means = "transformers 5 uses rope_scaling if both are present, other engines use rope_parameters"
        yield Fault(old_path, old, means, {old_path: None}, with_old.interpretation)


def _ropes(config: ExaminedConfig) -> Any:
    return None if config.model_config is None else config.model_config.ropes


def _unused_keys(rope_dict: RopeDict) -> dict[str, str | None]:
    """Return the keys that the method does not use, each with the key that was probably intended, or None."""
    used = ROPE_TYPE_OPTIONS[rope_dict.method] | _MODEL_KEYS
    if rope_dict.values.get("alpha") is not None:
        used = used | _IGNORED_BESIDE_ALPHA
    unused: dict[str, str | None] = {}
    for key, value in rope_dict.values.items():
        if key in used or isinstance(value, dict):
            continue
        intended = _OTHER_NAMES.get(key)
        if intended is None and key not in ALL_OPTIONS:
            similar = get_close_matches(key, used, n=1, cutoff=_MISSPELLING_SIMILARITY)
            intended = similar[0] if similar else None
        is_free = intended in used and rope_dict.values.get(intended or "") is None
        unused[key] = intended if is_free else None
    return unused


def _parse_rope_dict(value: object) -> dict[str, Any] | None:
    """Return the rope dict that a value contains as JSON text, else None."""
    if not isinstance(value, str):
        return None
    try:
        rope_dict = json.loads(value)
        return rope_dict if isinstance(rope_dict, dict) and from_rope_dict(rope_dict, strict=False) else None
    except (ValueError, RecursionError):
        return None
