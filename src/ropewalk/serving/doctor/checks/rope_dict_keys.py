"""Keys and values of the rope dict: a wrong rope type, wrong types of values, keys that are misspelled or ignored."""

from __future__ import annotations

import json
from collections.abc import Mapping
from difflib import get_close_matches
from typing import Any

from ropewalk.scaling import EMBEDDING_KEYS, from_rope_dict
from ropewalk.scaling.yarn import yarn_mscale
from ropewalk.serving.doctor.examined_config import ORIGINAL_LENGTH, ExaminedConfig, ExaminedRopeDict, KeyPath
from ropewalk.serving.doctor.fault_kinds import Answer, Fault, Faults, fault_kind, for_each_rope_dict
from ropewalk.serving.doctor.values import finite_number, parse_number, token_count
from ropewalk.serving.vllm_plugin.request_factors import ROPE_TYPE as PLUGIN_ROPE_TYPE

# The rope types of transformers and the options of each in a rope dict.
# Source: modeling_rope_utils.py of transformers 5, and the models that write `alpha` and the mscales.
_ROPE_TYPE_OPTIONS: dict[str, set[str]] = {
    "default": set(),
    "linear": {"factor"},
    "dynamic": {"factor", "alpha", "original_max_position_embeddings"},
    "yarn": {
        "factor", "original_max_position_embeddings", "attention_factor", "beta_fast", "beta_slow",
        "mscale", "mscale_all_dim", "truncate",
    },
    "longrope": {
        "factor", "original_max_position_embeddings", "attention_factor", "short_factor", "long_factor",
        "short_mscale", "long_mscale",
    },
    "llama3": {"factor", "original_max_position_embeddings", "low_freq_factor", "high_freq_factor"},
    "proportional": {"factor"},
}  # fmt: skip
# Options without which the method makes no sense, or is refused.
_REQUIRED_OPTIONS = {
    "linear": {"factor"},
    "dynamic": {"factor"},
    "yarn": {"factor", "original_max_position_embeddings"},
    "longrope": {"short_factor", "long_factor"},
    "llama3": {"factor", "low_freq_factor", "high_freq_factor"},
}
# Options that are no mistake but that transformers ignores.
_IGNORED_OPTIONS = {"dynamic": {ORIGINAL_LENGTH, "alpha"}}
_ALL_OPTIONS = set().union(*_ROPE_TYPE_OPTIONS.values())
_ROPE_FIELDS = ("rope_scaling", "rope_parameters")
# Keys of a rope dict that belong to the model and not to a scaling.
_MODEL_KEYS = EMBEDDING_KEYS | {ORIGINAL_LENGTH}
# Keys that only some engines read: the value that changes nothing, and what these engines do with another one.
# Source: get_rope of SGLang 0.5.23 (srt/layers/rotary_embedding) and of vLLM 0.33.0.
_ENGINE_KEYS = {
    ("yarn", "attn_factor"): (1, "SGLang reads it, and multiplies the attention factor by it"),
    ("yarn", "extrapolation_factor"): (1, "SGLang reads it, and multiplies the share of unscaled frequencies by it"),
    ("dynamic", "max_trained_positions"): (None, "vLLM reads it, as the original length"),
}
# Names for an attention factor that no reader of config.json knows.
_ATTENTION_FACTOR_NAMES = {
    "attention_scaling",
    "attention_scale",
    "attn_scaling",
    "attn_scale",
    "yarn_attn_factor",
    "attention_multiplier",
}
# Hunyuan writes these beside `alpha` and uses only alpha.
_IGNORED_BESIDE_ALPHA = {"beta_fast", "beta_slow", "mscale", "mscale_all_dim"}
# Names of the same parameter in other configurations and libraries.
_OTHER_NAMES = {
    "scaling_factor": "factor", "scale": "factor", "rope_factor": "factor", "base": "rope_theta", "theta": "rope_theta",
    "original_length": "original_max_position_embeddings",
    "original_context_length": "original_max_position_embeddings",
    "original_max_positions": "original_max_position_embeddings",
    "yarn_orig_ctx": "original_max_position_embeddings", "rope_scaling_factor": "factor",
    "rope_freq_base": "rope_theta", "yarn_beta_fast": "beta_fast", "yarn_beta_slow": "beta_slow",
}  # fmt: skip
# Rope types that only some engines know.
# Source: get_rope in vllm/model_executor/layers/rotary_embedding/__init__.py of vLLM 0.33.0.
_ENGINE_TYPES = {"ntk": "vLLM", "deepseek_llama_scaling": "vLLM", "xdrope": "vLLM", "openpangu": "vLLM"}
_NUMBER_KEYS = (
    "factor", "attention_factor", "beta_fast", "beta_slow", "mscale", "mscale_all_dim", "low_freq_factor",
    "high_freq_factor", "rope_theta", "partial_rotary_factor", "alpha",
)  # fmt: skip
_MISSPELLED_KEY_SIMILARITY = 0.8
_MISSPELLED_TYPE_SIMILARITY = 0.75
_METHOD_QUESTION = "Which method was the model trained with, or is to be served with?"
_ROPE_TYPE_KEYS = {"rope_type", "type"}


@fault_kind("not-an-object", "wrong")
def not_an_object(config: ExaminedConfig) -> Faults:
    """`rope_scaling` or `rope_parameters` is not an object."""
    for name in _ROPE_FIELDS:
        value, path = config.text.get(name), config.path_of(name)
        if value and not isinstance(value, dict):
            rope_dict, means = _parse_rope_dict(value), "transformers and the engines refuse it"
            question, answers = "Which scaling is meant?", (Answer("none", {path: None}),)
            yield Fault(path, value, means, {path: rope_dict} if rope_dict else {}, question, answers)


@fault_kind("type-contradicts", "wrong")
@for_each_rope_dict()
def type_contradicts(config: ExaminedConfig, rope_dict: ExaminedRopeDict) -> Faults:
    """`type` and `rope_type` name different methods."""
    new, old = rope_dict.values.get("rope_type"), rope_dict.values.get("type")
    if not new or not old or ExaminedRopeDict(rope_dict.path, "", {"type": old}).method == rope_dict.method:
        return
    old_path, new_path = rope_dict.path_of("type"), rope_dict.path_of("rope_type")
    means = f"transformers uses rope_type, {new}; engines that read the older key use type, {old}"
    actual = config.with_changes({new_path: old}).interpretation
    fixes = {str(new): {old_path: new}, str(old): {new_path: old}}
    # If the dict has the options of one of the two methods only, that method is meant.
    options = {key for key in rope_dict.values if key in _ALL_OPTIONS}
    complete = [name for name in fixes if options and options <= _ROPE_TYPE_OPTIONS.get(name, set())]
    fix = fixes[complete[0]] if len(complete) == 1 else {}
    answers = tuple(Answer(name, changes) for name, changes in fixes.items())
    yield Fault(old_path, old, means, fix, "Which method was the model trained with?", answers, actual)


@fault_kind("type-unknown", "wrong")
@for_each_rope_dict()
def type_unknown(config: ExaminedConfig, rope_dict: ExaminedRopeDict) -> Faults:
    """Transformers does not know the rope type."""
    if rope_dict.method in _ROPE_TYPE_OPTIONS or rope_dict.rope_type == PLUGIN_ROPE_TYPE:
        return
    path = rope_dict.rope_type_path
    similar = get_close_matches(rope_dict.method.lower(), _ROPE_TYPE_OPTIONS, n=1, cutoff=_MISSPELLED_TYPE_SIMILARITY)
    options = set(rope_dict.values) & _ALL_OPTIONS
    methods = [name for name, known in _ROPE_TYPE_OPTIONS.items() if name != "default" and options <= known]
    known = ", ".join(_ROPE_TYPE_OPTIONS)
    means = f"transformers knows only {known}"
    reader = _ENGINE_TYPES.get(str(rope_dict.rope_type))
    if reader:
        means = f"only {reader} knows this type; transformers knows {known}"
    answers = (*(Answer(name, {path: name}) for name in methods), Answer("none", rope_dict.fix_without_scaling))
    yield Fault(path, rope_dict.rope_type, means, {path: similar[0]} if similar else {}, _METHOD_QUESTION, answers)


@fault_kind("type-of-plugin", "suspicious")
@for_each_rope_dict()
def type_of_plugin(config: ExaminedConfig, rope_dict: ExaminedRopeDict) -> Faults:
    """The rope type is that of ropewalk's plugin for vLLM, which no other reader knows."""
    if rope_dict.rope_type == PLUGIN_ROPE_TYPE:
        path = rope_dict.rope_type_path
        means = "only vLLM with ropewalk installed beside it reads this type; transformers and other engines do not"
        answers = (Answer("none", rope_dict.fix_without_scaling),)
        yield Fault(path, PLUGIN_ROPE_TYPE, means, {}, "Is this folder to be served by vLLM only?", answers)


@fault_kind("type-deepseek-yarn", "wrong")
@for_each_rope_dict("yarn")
def type_deepseek_yarn(config: ExaminedConfig, rope_dict: ExaminedRopeDict) -> Faults:
    """The rope type is `deepseek_yarn`, the name of a class in vLLM and SGLang, which transformers does not know."""
    if rope_dict.rope_type == "deepseek_yarn":
        path = rope_dict.rope_type_path
        means = "transformers fails with a KeyError; vLLM and SGLang set this type themselves for DeepSeek's attention"
        yield Fault(path, "deepseek_yarn", means, {path: "yarn"}, expected=config.interpretation)


@fault_kind("type-su", "suspicious")
@for_each_rope_dict("longrope")
def type_su(config: ExaminedConfig, rope_dict: ExaminedRopeDict) -> Faults:
    """The rope type is `su`, the former name of longrope."""
    if rope_dict.rope_type == "su" and not config.model_type.startswith("phi"):
        path = rope_dict.rope_type_path
        yield Fault(path, "su", "only the classes of Phi-3 accept this name", {path: "longrope"})


@fault_kind("type-missing", "wrong")
@for_each_rope_dict("default")
def type_missing(config: ExaminedConfig, rope_dict: ExaminedRopeDict) -> Faults:
    """The rope dict has options of a scaling, but no rope type, so nothing is scaled."""
    options = set(rope_dict.values) & _ALL_OPTIONS - {ORIGINAL_LENGTH}
    if rope_dict.values.get("rope_type") or rope_dict.values.get("type") or not options:
        return
    path = rope_dict.path_of("rope_type")
    means = "without rope_type the method is default, which scales nothing"
    methods = _methods_with(set(rope_dict.values) & _ALL_OPTIONS)
    answers = (
        *(Answer(method, {path: method}) for method in methods),
        Answer("none", rope_dict.fix_without_scaling),
    )
    fix = {path: methods[0]} if len(methods) == 1 else {}
    yield Fault(path, None, means, fix, _METHOD_QUESTION, answers)


@fault_kind("not-a-number", "wrong")
def not_a_number(config: ExaminedConfig) -> Faults:
    """A number is written as text, is not finite, or is too large."""
    values = [(config.path_of(name), config.text.get(name)) for name in ("rope_theta", "partial_rotary_factor")]
    values += [(rope.path_of(key), rope.values.get(key)) for rope in config.rope_dicts for key in _NUMBER_KEYS]
    for path, value in values:
        if value is None or finite_number(value) is not None or _is_list_for_layers(config, value):
            continue
        number = parse_number(value)
        means = "some engines refuse it, others fail when they compute with it"
        question = f"Which number is {path[-1]}?"
        yield Fault(path, value, means, {} if number is None else {path: number}, question)


@fault_kind("key-misspelled", "wrong")
@for_each_rope_dict(*_ROPE_TYPE_OPTIONS)
def key_misspelled(config: ExaminedConfig, rope_dict: ExaminedRopeDict) -> Faults:
    """A key is misspelled, or is the name of the parameter in another library."""
    for key, intended in _unused_keys(rope_dict).items():
        if intended is not None:
            path, value = rope_dict.path_of(key), rope_dict.values[key]
            means = f"the key is ignored; the parameter is called {intended}"
            yield Fault(path, value, means, {path: None, rope_dict.path_of(intended): value})


@fault_kind("key-ignored", "suspicious")
@for_each_rope_dict(*_ROPE_TYPE_OPTIONS)
def key_ignored(config: ExaminedConfig, rope_dict: ExaminedRopeDict) -> Faults:
    """A key belongs to another method, or to none."""
    if rope_dict.method == "default" and not (rope_dict.values.get("rope_type") or rope_dict.values.get("type")):
        return  # the type itself is missing: type-missing
    for key, intended in _unused_keys(rope_dict).items():
        if intended is None and rope_dict.values[key] is not None:
            path = rope_dict.path_of(key)
            yield Fault(path, rope_dict.values[key], f"{rope_dict.method} ignores it", {path: None})


@fault_kind("key-of-one-engine", "suspicious")
@for_each_rope_dict("yarn", "dynamic")
def key_of_one_engine(config: ExaminedConfig, rope_dict: ExaminedRopeDict) -> Faults:
    """Only some engines read a key, and transformers ignores it."""
    for (method, key), (neutral, readers) in _ENGINE_KEYS.items():
        value, path = rope_dict.values.get(key), rope_dict.path_of(key)
        if method != rope_dict.method or value is None or value == neutral:
            continue
        means = f"only {readers}; transformers and the other engines ignore it"
        question, answers = "Was the model trained with it?", [Answer("no", {path: None})]
        number = finite_number(value)
        if key == "attn_factor" and number and rope_dict.factor and not rope_dict.values.get("attention_factor"):
            whole = number * yarn_mscale(rope_dict.factor)
            changes = {path: None, rope_dict.path_of("attention_factor"): whole}
            answers.append(Answer(f"yes, the whole attention factor is {whole:.4f}", changes))
        trained = token_count(value)
        if key == "max_trained_positions" and trained and config.declared_length:
            question, declared = "On how many tokens was the model trained?", config.declared_length
            if (rope_dict.factor or 1) * declared / trained <= (rope_dict.factor or 1) - 1:
                means += f"; for {declared:,} tokens its base would be a power of a negative number"
            changes = {path: None, config.path_of(config.length_field): trained}
            answers = [Answer(f"{trained:,}", changes), Answer(f"{declared:,}", {path: None})]
        yield Fault(path, value, means, question=question, answers=tuple(answers))


@fault_kind("attention-factor-name", "wrong")
@for_each_rope_dict("yarn", "longrope")
def attention_factor_name(config: ExaminedConfig, rope_dict: ExaminedRopeDict) -> Faults:
    """An attention factor has a name that no reader knows."""
    names = _ATTENTION_FACTOR_NAMES | ({"attn_factor"} if rope_dict.method == "longrope" else set())
    for key in sorted(names & set(rope_dict.values)):
        value, path = rope_dict.values[key], rope_dict.path_of(key)
        number, whole_path = finite_number(value), rope_dict.path_of("attention_factor")
        answers = [Answer("no factor", {path: None})]
        if number and number > 0 and rope_dict.values.get("attention_factor") is None:
            answers.insert(0, Answer("the whole attention factor", {path: None, whole_path: number}))
            if rope_dict.method == "yarn" and rope_dict.factor:
                whole = number * yarn_mscale(rope_dict.factor)
                answers.insert(1, Answer("a multiple of 0.1 ln s + 1", {path: None, whole_path: whole}))
        means = "the key is ignored; the parameter is called attention_factor"
        yield Fault(path, value, means, question="What is this number?", answers=tuple(answers))


@fault_kind("scaling-twice", "wrong")
def scaling_twice(config: ExaminedConfig) -> Faults:
    """`rope_scaling` and `rope_parameters` contradict each other."""
    old, new = (config.text.get(name) for name in _ROPE_FIELDS)
    if not (isinstance(old, dict) and isinstance(new, dict) and old and new):
        return
    old_path, new_path = (config.path_of(name) for name in _ROPE_FIELDS)
    with_old, with_new = config.with_changes({new_path: None}), config.with_changes({old_path: None})
    if with_old.model_config == with_new.model_config:
        return
    means = "transformers 5 uses rope_scaling if both are present, other engines use rope_parameters"
    base = new.get("rope_theta")
    if base and not old.get("rope_theta") and not config.text.get("rope_theta"):
        means = (
            f"transformers 5 uses rope_scaling and loses the base {base} of rope_parameters; other engines ignore it"
        )
    merged = _merge_into_rope_parameters(config, old, new)
    answers = (Answer("rope_scaling", merged), Answer("rope_parameters", {old_path: None}))
    # A scaling that was added to an unscaled rope dict is meant.
    is_added = (
        ExaminedRopeDict(old_path, "", old).method != "default"
        and ExaminedRopeDict(new_path, "", new).method == "default"
    )
    expected = config.with_changes(merged).interpretation if is_added else with_new.interpretation
    fix, question = merged if is_added else {}, "Which of the two is meant?"
    yield Fault(old_path, old, means, fix, question, answers, with_old.interpretation, expected)


def _merge_into_rope_parameters(
    config: ExaminedConfig, old: Mapping[str, Any], new: Mapping[str, Any]
) -> dict[KeyPath, Any]:
    """Return the changes that replace both rope dicts by the old one with the base and other model keys of the new."""
    model_keys = {key: value for key, value in new.items() if key in _MODEL_KEYS - _ROPE_TYPE_KEYS}
    return {config.path_of("rope_scaling"): None, config.path_of("rope_parameters"): {**model_keys, **old}}


def _is_list_for_layers(config: ExaminedConfig, value: object) -> bool:
    """Return whether a value is a list of numbers, in a configuration that can be read."""
    if not isinstance(value, list) or config.model_config is None:
        return False
    return bool(value) and all(finite_number(item) is not None for item in value)


def _methods_with(options: set[str]) -> list[str]:
    """Return the methods that use these options, and whose own options all have a default or are among them."""
    return [
        method
        for method, required in _REQUIRED_OPTIONS.items()
        if options and required <= options <= _ROPE_TYPE_OPTIONS[method] - _IGNORED_OPTIONS.get(method, set())
    ]


def _unused_keys(rope_dict: ExaminedRopeDict) -> dict[str, str | None]:
    """Return the keys that the method does not use, each with the key that was probably intended, or None."""
    used = _ROPE_TYPE_OPTIONS[rope_dict.method] | _MODEL_KEYS
    elsewhere = {key for method, key in _ENGINE_KEYS if method == rope_dict.method}  # key-of-one-engine
    if rope_dict.method in ("yarn", "longrope"):
        elsewhere |= _ATTENTION_FACTOR_NAMES | {"attn_factor"}  # attention-factor-name
    if rope_dict.values.get("alpha") is not None:
        used = used | _IGNORED_BESIDE_ALPHA
    unused: dict[str, str | None] = {}
    for key, value in rope_dict.values.items():
        if key in used or key in elsewhere or isinstance(value, dict):
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
