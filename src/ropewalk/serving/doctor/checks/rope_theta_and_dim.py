"""The base, `rope_theta`, and the number of rotary dimensions: missing, given twice, or impossible."""

from __future__ import annotations

import math
from typing import Any

from ropewalk import config as configs
from ropewalk.config.class_defaults import find_class_defaults, find_text_type
from ropewalk.config.fields import FIELD_NAMES
from ropewalk.errors import InputError
from ropewalk.rope import RotaryDimError
from ropewalk.serving.doctor.examined_config import ExaminedConfig, ExaminedRopeDict, KeyPath
from ropewalk.serving.doctor.fault_kinds import Answer, Fault, Faults, fault_kind, for_each_rope_dict
from ropewalk.serving.doctor.rotations import compute_scaled_length
from ropewalk.serving.doctor.values import finite_number, format_number

_BASE_FIELDS = ("rope_theta", *FIELD_NAMES["rope_theta"])
_USUAL_BASE = 10_000.0  # what engines use if the configuration has no base
_PARTIAL = "partial_rotary_factor"
_DIM_FIELDS = ("qk_rope_head_dim", "rotary_dim", "head_dim")
# DeepSeek trained its distilled models with a base of 10,000 for 131,072 tokens, 2.4 times the longest wavelength.
_MAX_LENGTH_IN_WAVELENGTHS = 4
_BASE_QUESTION = "With which base was the model trained?"
_PARTIAL_QUESTION = "Which fraction of each head was rotated in training?"
_HEAD_FIELDS = ("head_dim", "qk_rope_head_dim", "kv_channels")


@fault_kind("base-twice", "wrong")
@for_each_rope_dict()
def base_twice(config: ExaminedConfig, rope_dict: ExaminedRopeDict) -> Faults:
    """There are two different bases: in the rope dict and beside it."""
    outside = finite_number(config.text.get("rope_theta"))
    inside = finite_number(rope_dict.values.get("rope_theta"))
    if rope_dict.layer_type != configs.ALL_LAYERS or not outside or not inside or outside == inside:
        return
    path, inside_path = config.path_of("rope_theta"), rope_dict.path_of("rope_theta")
    means = (
        f"transformers 5 uses {format_number(inside)}, from the dict; readers of transformers 4's fields use "
        f"{format_number(outside)}"
    )
    actual = config.with_changes({inside_path: outside}).interpretation
    fixes = {inside: {path: inside}, outside: {inside_path: outside}}
    published = config.published_model.model_config.main_layer.rope.base if config.published_model else 0.0
    answers = tuple(Answer(f"{format_number(base)}", changes) for base, changes in fixes.items())
    yield Fault(path, outside, means, fixes.get(published, {}), _BASE_QUESTION, answers, actual, config.interpretation)


@fault_kind("base-missing", "suspicious")
def base_missing(config: ExaminedConfig) -> Faults:
    """There is no rope_theta, and the default of the architecture is unknown or not the 10,000 that engines use."""
    has_base = any(config.text.get(name) is not None for name in _BASE_FIELDS)
    has_base = has_base or any(rope_dict.values.get("rope_theta") is not None for rope_dict in config.rope_dicts)
    if has_base or not config.rope_dicts or config.model_config is None:
        return
    path = config.path_of("rope_theta")
    default = config.model_config.main_layer.rope.base
    fix: dict[KeyPath, Any] = {}
    if find_class_defaults(find_text_type(config.model_type)) is not None:
        if default == _USUAL_BASE:
            return
        means = f"readers that do not know the default of this architecture, {format_number(default)}, use 10,000"
        fix = {path: default}
    elif any(rope_dict.values for rope_dict in config.rope_dicts):
        means = "the default of this architecture is unknown; engines use 10,000, which only its authors can confirm"
    else:
        return
    actual = config.with_changes({path: _USUAL_BASE}).interpretation
    yield Fault(path, None, means, fix, _BASE_QUESTION, (Answer("10,000", {path: _USUAL_BASE}),), actual)


@fault_kind("base-lost", "wrong")
def base_lost(config: ExaminedConfig) -> Faults:
    """A scaling has no rope_theta, and published models of the architecture have another base than its default."""
    model_config = config.model_config
    has_base = any(value is not None for _, value in config.find_values(*_BASE_FIELDS))
    if has_base or model_config is None or not any(rope.method != "default" for rope in config.rope_dicts):
        return
    used = model_config.main_layer.rope.base
    published = {
        model.model: model.model_config.main_layer.rope.base for model in config.published_models_of_this_architecture
    }
    bases = set(published.values())
    if not bases or used in bases:
        return
    path = config.rope_dicts[0].path_of("rope_theta")
    if config.rope_dicts[0].layer_type != configs.ALL_LAYERS:
        path = config.path_of("rope_theta")
    example = next(iter(published))
    means = (
        f"transformers uses {format_number(used)}, but {example} is published with {format_number(published[example])}"
    )
    answers = tuple(Answer(f"{format_number(base)}", {path: base}) for base in sorted(bases))
    yield Fault(path, None, means, {path: bases.pop()} if len(bases) == 1 else {}, _BASE_QUESTION, answers)


@fault_kind("base-impossible", "wrong")
def base_impossible(config: ExaminedConfig) -> Faults:
    """A rope_theta is 1 or less."""
    for path, value in config.find_values("rope_theta"):
        base = finite_number(value)
        if base is not None and base <= 1:
            fix = {}
            if config.published_model is not None:
                fix[path] = config.published_model.model_config.main_layer.rope.base
            yield Fault(path, value, "no pair would rotate slower than the first one", fix, _BASE_QUESTION)


@fault_kind("base-too-small", "suspicious")
def base_too_small(config: ExaminedConfig) -> Faults:
    """The base is below every published one of the architecture, and its longest wavelength far below the length."""
    model_config = config.model_config
    if model_config is None:
        return
    layer = model_config.main_layer
    published = {model.model_config.main_layer.rope.base for model in config.published_models_of_this_architecture}
    paths = [path for path, base in config.find_values("rope_theta") if base == layer.rope.base]
    length = compute_scaled_length(layer)
    if not paths or not length or not published or layer.rope.base >= min(published):
        return
    try:
        inv_freq = configs.compute_layer_frequencies(layer.scaling, layer, length).inv_freq
    except InputError:
        return  # lists of a wrong length: list-length
    path, longest = paths[0], math.tau / min(inv_freq[inv_freq > 0], default=math.tau)
    if longest * _MAX_LENGTH_IN_WAVELENGTHS >= length:
        return
    means = (
        f"the longest wavelength, {longest:,.0f} tokens, is much less than the {length:,} tokens that the file is made "
        "for, so that distances cannot be told apart"
    )
    fix: dict[KeyPath, Any] = {}
    if config.published_model is not None:
        fix[path] = config.published_model.model_config.main_layer.rope.base
    answers = tuple(Answer(f"{format_number(base)}", {path: base}) for base in sorted(published))
    yield Fault(path, layer.rope.base, means, fix, _BASE_QUESTION, answers)


@fault_kind("partial-twice", "wrong")
@for_each_rope_dict()
def partial_twice(config: ExaminedConfig, rope_dict: ExaminedRopeDict) -> Faults:
    """There are two different partial_rotary_factors: in the rope dict and beside it."""
    outside, inside = finite_number(config.text.get(_PARTIAL)), finite_number(rope_dict.values.get(_PARTIAL))
    if rope_dict.layer_type != configs.ALL_LAYERS or not outside or not inside or outside == inside:
        return
    path = config.path_of(_PARTIAL)
    means = f"transformers 5 rotates {inside:g} of each head, readers of the older field {outside:g}"
    answers = (
        Answer(f"{inside:g}", {path: inside}),
        Answer(f"{outside:g}", {rope_dict.path_of(_PARTIAL): outside}),
    )
    yield Fault(path, outside, means, question=_PARTIAL_QUESTION, answers=answers)


@fault_kind("partial-impossible", "wrong")
def partial_impossible(config: ExaminedConfig) -> Faults:
    """A partial_rotary_factor is not above 0 and at most 1."""
    for path, value in config.find_values(_PARTIAL):
        fraction = finite_number(value)
        if fraction is not None and not 0 < fraction <= 1:
            likely = fraction / 100 if 1 < fraction <= 100 else 1.0  # a percentage
            answers = (Answer(f"{likely:g}", {path: likely}),)
            means = "it is the fraction of each head that is rotated"
            yield Fault(path, value, means, question=_PARTIAL_QUESTION, answers=answers)


@fault_kind("proportional-whole", "suspicious")
@for_each_rope_dict("proportional")
def proportional_whole(config: ExaminedConfig, rope_dict: ExaminedRopeDict) -> Faults:
    """Proportional has no partial_rotary_factor, so all pairs are rotated."""
    if rope_dict.values.get(_PARTIAL) is None and config.text.get(_PARTIAL) is None:
        means = "the default is 1, which is the same as the type default; Gemma 4 writes 0.25"
        path = rope_dict.path_of(_PARTIAL)
        answers = (
            Answer("all pairs", {rope_dict.rope_type_path: "default"}),
            Answer("a quarter of the pairs", {path: 0.25}),
        )
        yield Fault(path, None, means, question="Which part of the pairs was rotated in training?", answers=answers)


@fault_kind("dim-odd", "wrong")
def dim_odd(config: ExaminedConfig) -> Faults:
    """The number of rotary dimensions is odd, so they cannot be paired."""
    if not isinstance(config.interpretation, RotaryDimError) or _rounded_head_dim(config):
        return
    name = next((name for name in _DIM_FIELDS if config.text.get(name)), None)
    value = config.text.get(name or "")
    path, question = config.path_of(name or "hidden_size"), "How large is a head?"
    fix: dict[KeyPath, Any] = {}
    answers: tuple[Answer, ...] = ()
    if name and isinstance(value, int) and value > 2 and value % 2:
        answers = (Answer(f"{value - 1}", {path: value - 1}), Answer(f"{value + 1}", {path: value + 1}))
        hidden_size, num_heads = config.text.get("hidden_size"), config.text.get("num_attention_heads")
        sizes = [size for size in (value - 1, value + 1) if hidden_size == _product(size, num_heads)]
        fix = {path: sizes[0]} if name == "head_dim" and sizes else {}
    yield Fault(path, value, str(config.interpretation), fix, question, answers)


@fault_kind("head-dim-broken", "suspicious")
def head_dim_broken(config: ExaminedConfig) -> Faults:
    """`hidden_size` is not divisible by the number of heads, and there is no head_dim."""
    head_dim = _rounded_head_dim(config)
    if head_dim is None:
        return
    path = config.path_of("head_dim")
    quotient = f"{config.text['hidden_size']:,} / {config.text['num_attention_heads']} heads"
    if config.model_config is None:
        means = f"{quotient} is rounded down to {head_dim}, which cannot be paired"
        yield Fault(path, None, means, question="How large is a head? Only its authors know head_dim")
    else:
        means = f"{quotient} is rounded down to {head_dim}; some engines round differently"
        yield Fault(path, None, means, {path: head_dim})


def _product(size: int, count: object) -> int | None:
    """Return size times count if count is a number, else None."""
    return size * count if isinstance(count, int) else None


def _rounded_head_dim(config: ExaminedConfig) -> int | None:
    """Return hidden_size / number of heads, rounded down, if it is not whole and no field has the size of a head."""
    hidden_size, num_heads = config.text.get("hidden_size"), config.text.get("num_attention_heads")
    if any(config.text.get(name) for name in _HEAD_FIELDS):
        return None
    if not isinstance(hidden_size, int) or not isinstance(num_heads, int):
        return None
    return hidden_size // num_heads if 0 < num_heads < hidden_size and hidden_size % num_heads else None
