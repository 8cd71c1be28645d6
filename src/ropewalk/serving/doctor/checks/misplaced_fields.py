"""Rope fields that are not where their reader looks: beside the text part, in another part, beside the rope dict."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from difflib import get_close_matches
from typing import Any

from ropewalk import config as configs
from ropewalk.serving.doctor.examined_config import ORIGINAL_LENGTH, ExaminedConfig, ExaminedRopeDict, KeyPath
from ropewalk.serving.doctor.fault_kinds import Answer, Fault, Faults, fault_kind
from ropewalk.serving.doctor.values import finite_number, token_count

_ROPE_FIELDS = ("rope_parameters", "rope_scaling")
_TYPE_KEYS = ("rope_type", "type")
_SCALED_METHODS = {"linear", "dynamic", "yarn", "longrope", "llama3"}
# Composite architectures whose class hands rope fields beside text_config on to it. The other 97 ignore them, and
# fail to load if there is no max_position_embeddings beside them.
# Source: CONFIG_MAPPING of transformers 5.23.0, each class loaded with rope_scaling beside its text_config.
_READS_FIELDS_BESIDE_TEXT = {"mistral_large4"}
# Parts of a composite configuration that have rotary embeddings of their own, for images and sounds.
_OTHER_PARTS = ("vision_config", "audio_config", "vision_tower_config", "image_config")
# Options of a scaling that mean nothing beside the rope dict.
_OPTIONS = (
    "factor", "attention_factor", "beta_fast", "beta_slow", "mscale", "mscale_all_dim", "low_freq_factor",
    "high_freq_factor", "short_factor", "long_factor", "rope_scaling_factor", "rope_scaling_type", "yarn_beta_fast",
    "yarn_beta_slow",
)  # fmt: skip
_OPTION_NAMES = {
    "rope_scaling_factor": "factor", "rope_scaling_type": "rope_type", "yarn_beta_fast": "beta_fast",
    "yarn_beta_slow": "beta_slow",
}  # fmt: skip
_MISSPELLED_FIELD_SIMILARITY = 0.75


@fault_kind("rope-beside-text", "wrong")
def rope_beside_text(config: ExaminedConfig) -> Faults:
    """A rope dict is beside the text part of a composite configuration, where it is not read."""
    if not config.text_path or str(config.config.get("model_type")) in _READS_FIELDS_BESIDE_TEXT:
        return
    for path, rope_dict in _rope_dicts_outside_text(config):
        moved = _move_into_text(config, path, rope_dict)
        expected = config.with_changes(moved).interpretation
        if expected == config.interpretation:
            continue  # the same as in the text part
        part, length_path = config.text_path[-1], (*path[:-1], "max_position_embeddings")
        is_refused = ExaminedRopeDict(path, "", rope_dict).method in ("yarn", "llama3", "longrope")
        effect = "ignores it"
        if is_refused and length_path[-1] not in _get_part(config, path[:-1]):
            effect = "fails to load it, since max_position_embeddings is missing beside it"
        means = f"transformers reads the rope dict in {part} and {effect}"
        inner = [each.method for each in config.rope_dicts if each.method in _SCALED_METHODS]
        if not inner:
            yield Fault(path, rope_dict, means, moved, "Which scaling is meant?", expected=expected)
            continue
        question = f"Which of the two rope dicts is meant, this one or that in {part}?"
        answers = (Answer("this one", moved), Answer(f"that in {part}", {path: None}))
        yield Fault(path, rope_dict, means, question=question, answers=answers, expected=expected)


@fault_kind("rope-in-other-part", "wrong")
def rope_in_other_part(config: ExaminedConfig) -> Faults:
    """A scaling for long texts is in the part for images or sounds."""
    for part in _OTHER_PARTS:
        fields = config.config.get(part)
        if not isinstance(fields, Mapping):
            continue
        for name in _ROPE_FIELDS:
            rope_dict, path = fields.get(name), (part, name)
            if (
                not isinstance(rope_dict, Mapping)
                or ExaminedRopeDict(path, "", rope_dict).method not in _SCALED_METHODS
            ):
                continue
            means = f"it does not scale the text, which the decoder reads in {'.'.join(config.text_path) or name}"
            moved = _move_into_text(config, path, rope_dict)
            is_text_scaled = any(each.method in _SCALED_METHODS for each in config.rope_dicts)
            fix: dict[KeyPath, Any] = {path: None} if is_text_scaled else moved
            yield Fault(path, rope_dict, means, fix, "Which part was trained with this scaling?")


@fault_kind("field-misspelled", "wrong")
def field_misspelled(config: ExaminedConfig) -> Faults:
    """A rope dict is under a misspelled name, such as `rope_scalling`."""
    for name, value in config.text.items():
        if name in _ROPE_FIELDS or not isinstance(value, Mapping) or not any(value.get(key) for key in _TYPE_KEYS):
            continue
        similar = get_close_matches(name, _ROPE_FIELDS, n=1, cutoff=_MISSPELLED_FIELD_SIMILARITY)
        if similar and not config.text.get(similar[0]):
            path = config.path_of(name)
            fix = {path: None, config.path_of(similar[0]): dict(value)}
            yield Fault(path, value, f"no reader knows this field; it is called {similar[0]}", fix)


@fault_kind("option-beside-dict", "suspicious")
def option_beside_dict(config: ExaminedConfig) -> Faults:
    """An option of a scaling is beside the rope dict, where it is ignored."""
    rope_dict = config.rope_dicts[0] if len(config.rope_dicts) == 1 else None
    if rope_dict is None or rope_dict.layer_type != configs.ALL_LAYERS or not rope_dict.values:
        return
    for name in _OPTIONS:
        value, path = config.text.get(name), config.path_of(name)
        option = _OPTION_NAMES.get(name, name)
        if value is None or (finite_number(value) is None and not isinstance(value, str | list)):
            continue
        inner = rope_dict.values.get(option)
        means = f"readers look for {option} in {rope_dict.path[-1]}" + (
            "" if inner is None else f", where it is {inner}"
        )
        if inner is not None:
            yield Fault(path, value, means, {path: None} if inner == value else {}, f"Which {option} is meant?")
            continue
        answers = (Answer("yes", {path: None, rope_dict.path_of(option): value}), Answer("no", {path: None}))
        yield Fault(path, value, means, question="Does it belong to the scaling?", answers=answers)


def _rope_dicts_outside_text(config: ExaminedConfig) -> Iterator[tuple[KeyPath, Mapping[str, Any]]]:
    """Yield path and content of each scaled rope dict in the parts around the text part."""
    for depth in range(len(config.text_path)):
        part, outer = _get_part(config, config.text_path[:depth]), config.text_path[:depth]
        for name in _ROPE_FIELDS:
            rope_dict, path = part.get(name), (*outer, name)
            if isinstance(rope_dict, Mapping) and ExaminedRopeDict(path, "", rope_dict).method in _SCALED_METHODS:
                yield path, rope_dict


def _get_part(config: ExaminedConfig, path: KeyPath) -> Mapping[str, Any]:
    part = config.config
    for key in path:
        part = part[key]
    return part


def _move_into_text(config: ExaminedConfig, path: KeyPath, rope_dict: Mapping[str, Any]) -> dict[KeyPath, Any]:
    """Return the changes that move a rope dict into the text part, together with the length declared beside it.

    Keys of the model itself that only the rope dict of the text part has, such as rope_theta, are kept.
    """
    inner = config.main_rope_dict or ExaminedRopeDict(config.path_of(path[-1]), configs.ALL_LAYERS, {})
    scaling_keys = configs.SCALING_KEYS - {"rope_theta"} | {ORIGINAL_LENGTH}
    kept = {key: value for key, value in inner.values.items() if key not in scaling_keys}
    changes: dict[KeyPath, Any] = {path: None, inner.path: {**kept, **rope_dict}}
    outer = _get_part(config, path[:-1])
    declared = token_count(outer.get("max_position_embeddings"))
    if path[0] not in _OTHER_PARTS and declared and declared > (config.declared_length or 0):
        changes[(*path[:-1], "max_position_embeddings")] = None
        changes[config.path_of(config.length_field)] = declared
    return changes
