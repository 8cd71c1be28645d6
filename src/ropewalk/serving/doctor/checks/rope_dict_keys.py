"""Keys and values of the rope dict: a wrong rope type, wrong types of values, keys that are misspelled or ignored."""

from __future__ import annotations

import json
from difflib import get_close_matches
from typing import Any

from ropewalk.scaling import from_rope_dict
from ropewalk.serving.doctor.examined_config import ORIGINAL_LENGTH, ExaminedConfig, RopeDict
from ropewalk.serving.doctor.fault_kinds import Fault, Faults, fault_kind, for_each_rope_dict
from ropewalk.serving.doctor.values import finite_number, parse_number

# The rope types of transformers and the options of each in a rope dict.
# Source: modeling_rope_utils.py of transformers 5, and the models that write `alpha`, `attn_factor` and the mscales.
_ROPE_TYPE_OPTIONS: dict[str, set[str]] = {
    "default": set(),
    "linear": {"factor"},
    "dynamic": {"factor", "alpha", "original_max_position_embeddings"},
    "yarn": {
        "factor", "original_max_position_embeddings", "attention_factor", "attn_factor", "beta_fast", "beta_slow",
        "mscale", "mscale_all_dim", "truncate",
    },
    "longrope": {
        "factor", "original_max_position_embeddings", "attention_factor", "short_factor", "long_factor",
        "short_mscale", "long_mscale",
    },
    "llama3": {"factor", "original_max_position_embeddings", "low_freq_factor", "high_freq_factor"},
    "proportional": {"factor"},
}  # fmt: skip
_ALL_OPTIONS = set().union(*_ROPE_TYPE_OPTIONS.values())
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
_MISSPELLED_KEY_SIMILARITY = 0.8
_MISSPELLED_TYPE_SIMILARITY = 0.5


@fault_kind("not-an-object", "wrong")
def not_an_object(config: ExaminedConfig) -> Faults:
    """`rope_scaling` or `rope_parameters` is not an object."""
    for name in _ROPE_FIELDS:
        value, path = config.text.get(name), config.path_of(name)
        if value and not isinstance(value, dict):
            yield Fault(path, value, "transformers and the engines refuse it", {path: _parse_rope_dict(value)})


@fault_kind("type-contradicts", "wrong")
@for_each_rope_dict()
def type_contradicts(config: ExaminedConfig, rope_dict: RopeDict) -> Faults:
    """`type` and `rope_type` name different methods."""
    new, old = rope_dict.values.get("rope_type"), rope_dict.values.get("type")
    if not new or not old or RopeDict(rope_dict.path, "", {"type": old}).method == rope_dict.method:
        return
    path = rope_dict.path_of("type")
    means = f"transformers uses rope_type, {new}; engines that read the older key use type, {old}"
    actual = config.with_changes({rope_dict.path_of("rope_type"): old}).interpretation
    yield Fault(path, old, means, {path: new}, actual)


@fault_kind("type-unknown", "wrong")
@for_each_rope_dict()
def type_unknown(config: ExaminedConfig, rope_dict: RopeDict) -> Faults:
    """Transformers does not know the rope type."""
    if rope_dict.method in _ROPE_TYPE_OPTIONS:
        return
    path = rope_dict.rope_type_path
    similar = get_close_matches(rope_dict.method.lower(), _ROPE_TYPE_OPTIONS, n=1, cutoff=_MISSPELLED_TYPE_SIMILARITY)
    fix = {path: similar[0]} if similar else rope_dict.fix_without_scaling
    yield Fault(path, rope_dict.rope_type, f"transformers knows only {', '.join(_ROPE_TYPE_OPTIONS)}", fix)


@fault_kind("type-su", "suspicious")
@for_each_rope_dict("longrope")
def type_su(config: ExaminedConfig, rope_dict: RopeDict) -> Faults:
    """The rope type is `su`, the former name of longrope."""
    if rope_dict.rope_type == "su" and not config.model_type.startswith("phi"):
        path = rope_dict.rope_type_path
        yield Fault(path, "su", "only the classes of Phi-3 accept this name", {path: "longrope"})


@fault_kind("type-missing", "wrong")
@for_each_rope_dict("default")
def type_missing(config: ExaminedConfig, rope_dict: RopeDict) -> Faults:
    """The rope dict has options of a scaling, but no rope type, so nothing is scaled."""
    options = set(rope_dict.values) & _ALL_OPTIONS - {ORIGINAL_LENGTH}
    if rope_dict.values.get("rope_type") or rope_dict.values.get("type") or not options:
        return
    path = rope_dict.path_of("rope_type")
    means = "without rope_type the method is default, which scales nothing"
    yield Fault(path, None, means, {path: _likely_method(rope_dict, options)})


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
@for_each_rope_dict(*_ROPE_TYPE_OPTIONS)
def key_misspelled(config: ExaminedConfig, rope_dict: RopeDict) -> Faults:
    """A key is misspelled, or is the name of the parameter in another library."""
    for key, intended in _unused_keys(rope_dict).items():
        if intended is not None:
            path, value = rope_dict.path_of(key), rope_dict.values[key]
            means = f"the key is ignored; the parameter is called {intended}"
            yield Fault(path, value, means, {path: None, rope_dict.path_of(intended): value})


@fault_kind("key-ignored", "suspicious")
@for_each_rope_dict(*_ROPE_TYPE_OPTIONS)
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
    if with_old.model_config != with_new.model_config:
        means = "transformers 5 uses rope_scaling if both are present, other engines use rope_parameters"
        yield Fault(old_path, old, means, {old_path: None}, with_old.interpretation)


def _unused_keys(rope_dict: RopeDict) -> dict[str, str | None]:
    """Return the keys that the method does not use, each with the key that was probably intended, or None."""
    used = _ROPE_TYPE_OPTIONS[rope_dict.method] | _MODEL_KEYS
    if rope_dict.values.get("alpha") is not None:
        used = used | _IGNORED_BESIDE_ALPHA
    unused: dict[str, str | None] = {}
    for key, value in rope_dict.values.items():
        if key in used or isinstance(value, dict):
            continue
        intended = _OTHER_NAMES.get(key)
        if intended is None and key not in _ALL_OPTIONS:
            similar = get_close_matches(key, used, n=1, cutoff=_MISSPELLED_KEY_SIMILARITY)
            intended = similar[0] if similar else None
        is_free = intended in used and rope_dict.values.get(intended or "") is None
        unused[key] = intended if is_free else None
    return unused


def _parse_rope_dict(value: object) -> dict[str, Any] | None:
    """Return the rope dict that a value contains as JSON text, else None."""
    try:
        rope_dict = json.loads(value) if isinstance(value, str) else None
        return rope_dict if isinstance(rope_dict, dict) and from_rope_dict(rope_dict, strict=False) else None
    except (ValueError, RecursionError):
        return None


def _likely_method(rope_dict: RopeDict, options: set[str]) -> str:
    """Return the method that alone has one of these options; otherwise yarn if there is an original length."""
    for method in ("llama3", "longrope", "yarn", "dynamic"):
        others = set().union(*(_ROPE_TYPE_OPTIONS[other] for other in _ROPE_TYPE_OPTIONS if other != method))
        if options & _ROPE_TYPE_OPTIONS[method] - others:
            return method
    return "yarn" if ORIGINAL_LENGTH in rope_dict.values else "linear"
