"""Lengths and factors that contradict each other, are missing, or are read otherwise than they look."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from ropewalk import config as configs
from ropewalk.config import ModelConfig
from ropewalk.errors import InputError
from ropewalk.planning import Plan, plan
from ropewalk.serving.doctor.base import Fault, Path, Subject, Written, each_rope, kind, number, whole
from ropewalk.serving.engines import ENGINES
from ropewalk.serving.engines.encode import encode

_SLACK = 1.01  # makers round: 128k is 131,072 and also 128,000
_ORIGINAL = "original_max_position_embeddings"
_TRAINED_SO = {"openai_privacy_filter"}  # gpt-oss made a reader of windows: its yarn is that of its training
_OLDER = ("rope_scaling", "rope_theta", "rope_local_base_freq")  # which rope_parameters take the place of
_SCALED = ("linear", "dynamic", "yarn", "longrope", "llama3")


@kind("length-not-whole", "wrong")
def length_not_whole(subject: Subject) -> Iterator[Fault]:
    """A length that is no whole number of tokens above 0."""
    places = [(subject.at(name), subject.text.get(name)) for name in (subject.length_field, _ORIGINAL)]
    places += [(rope.at(_ORIGINAL), rope.values.get(_ORIGINAL)) for rope in subject.ropes]
    for path, value in places:
        if value is not None and whole(value) is None:
            guess = _as_whole(value)
            yield Fault(path, value, "readers refuse it, or count on from it", {path: guess} if guess else {})


@kind("factor-too-small", "wrong")
@each_rope("yarn")
def factor_too_small(subject: Subject, rope: Written) -> Iterator[Fault]:
    """Yarn's factor times the original length stays below max_position_embeddings."""
    original, declared, factor = subject.original(rope), subject.declared, rope.factor
    if original and declared and factor and factor * original * _SLACK < declared and original <= declared:
        means = (
            f"{factor:g} x {original:,} = {factor * original:,.0f} tokens, but the configuration declares {declared:,}"
        )
        yield Fault(rope.at("factor"), rope.values["factor"], means, {rope.at("factor"): declared / original})


@kind("declared-too-small", "suspicious")
@each_rope("yarn")
def declared_too_small(subject: Subject, rope: Written) -> Iterator[Fault]:
    """`max_position_embeddings` stays below what yarn's factor reaches."""
    original, declared, factor = subject.original(rope), subject.declared, rope.factor
    if not (original and declared and factor) or factor * original <= declared * _SLACK or original > declared:
        return
    if subject.as_published is None:
        means = (
            f"the scaling is made for {factor:g} x {original:,} tokens; engines that take the length they serve from "
            f"this field stop at {declared:,}. If that is all you need, a factor of {declared / original:g} hurts less"
        )
        path = subject.at(subject.length_field)
        yield Fault(path, declared, means, {path: round(factor * original)})


@kind("original-missing", "wrong")
@each_rope("yarn", "llama3", "longrope")
def original_missing(subject: Subject, rope: Written) -> Iterator[Fault]:
    """Yarn, llama3 or longrope without the original length."""
    declared = subject.declared
    if subject.original(rope) or rope.values.get(_ORIGINAL) is not None or not declared:
        return
    factor = rope.factor or 1.0
    trained = max(1, round(declared / factor))
    means = (
        f"transformers takes max_position_embeddings, {declared:,}, for the length it was trained on; with factor "
        f"{factor:g} that was {trained:,}, unless max_position_embeddings still is the trained length: then write that"
    )
    yield Fault(rope.at(_ORIGINAL), None, means, {rope.at(_ORIGINAL): trained})


@kind("original-past-declared", "wrong")
@each_rope("yarn", "llama3", "longrope")
def original_past_declared(subject: Subject, rope: Written) -> Iterator[Fault]:
    """An original length above max_position_embeddings."""
    original, declared = subject.original(rope), subject.declared
    if original and declared and original > declared:
        reached = round(original * (rope.factor or 1.0))
        path = subject.at(subject.length_field)
        means = f"the model would read less than the {original:,} tokens it was trained on"
        yield Fault(path, declared, means, {path: reached})


@kind("original-twice", "wrong")
@each_rope()
def original_twice(subject: Subject, rope: Written) -> Iterator[Fault]:
    """Two different original lengths, beside the rope dict and in it."""
    outside, inside = whole(subject.text.get(_ORIGINAL)), whole(rope.values.get(_ORIGINAL))
    if outside and inside and outside != inside:
        means = (
            f"transformers takes {outside:,}, which stands beside the dict; engines that look into it take {inside:,}"
        )
        actual = subject.with_({subject.at(_ORIGINAL): None}).model_config
        yield Fault(rope.at(_ORIGINAL), inside, means, {rope.at(_ORIGINAL): outside}, actual)


@kind("factor-missing", "wrong")
@each_rope("linear", "dynamic", "yarn", "llama3")
def factor_missing(subject: Subject, rope: Written) -> Iterator[Fault]:
    """A scaling without its factor."""
    if rope.values.get("factor") is not None or rope.values.get("alpha") is not None:
        return
    original, declared = subject.original(rope), subject.declared
    means = f"transformers refuses {rope.method} without a factor"
    if original and declared and declared > original:
        yield Fault(rope.at("factor"), None, means, {rope.at("factor"): declared / original})
    else:
        yield Fault(rope.at("factor"), None, means, rope.unscaled)


@kind("factor-below-1", "wrong")
@each_rope(*_SCALED)
def factor_below_1(subject: Subject, rope: Written) -> Iterator[Fault]:
    """A factor below 1: its inverse, or a mistake."""
    factor = number(rope.values.get("factor"))
    if factor is None or factor >= 1:
        return
    means = "the pairs would turn faster than in training; llama.cpp's rope_freq_scale is the inverse of a factor"
    yield Fault(rope.at("factor"), factor, means, {rope.at("factor"): 1 / factor if factor > 1e-12 else 1.0})


@kind("factor-1", "suspicious")
@each_rope("linear", "dynamic", "yarn", "llama3")
def factor_1(subject: Subject, rope: Written) -> Iterator[Fault]:
    """A scaling whose factor is 1, which changes nothing."""
    original, declared = subject.original(rope), subject.declared
    reaches_on = original and declared and original * _SLACK < declared  # then the factor itself is wrong
    if number(rope.values.get("factor")) == 1 and rope.values.get("alpha") is None and not reaches_on:
        means = "nothing is scaled, and some engines take another path for it"
        yield Fault(rope.at("factor"), rope.values["factor"], means, rope.unscaled)


@kind("dynamic-original", "suspicious")
@each_rope("dynamic")
def dynamic_original(subject: Subject, rope: Written) -> Iterator[Fault]:
    """Dynamic with an original length, which transformers passes over."""
    original, declared = subject.original(rope), subject.declared
    if original and declared and original != declared:
        means = f"transformers' dynamic scales past max_position_embeddings, {declared:,}, and not past {original:,}"
        fix = {rope.at(_ORIGINAL): None, subject.at(_ORIGINAL): None, subject.at(subject.length_field): original}
        yield Fault(rope.at(_ORIGINAL), original, means, fix)


@kind("length-multiplied", "suspicious")
@each_rope("linear")
def length_multiplied(subject: Subject, rope: Written) -> Iterator[Fault]:
    """Linear, and max_position_embeddings already multiplied by the factor."""
    original, declared = subject.original(rope), subject.declared
    if original and declared and declared > original and not subject.model_type.startswith("gemma3"):
        means = (
            "transformers' linear knows no original length, and vLLM multiplies max_position_embeddings by the factor: "
            f"it would accept {declared * (rope.factor or 1):,.0f} tokens"
        )
        fix = {rope.at(_ORIGINAL): None, subject.at(_ORIGINAL): None, subject.at(subject.length_field): original}
        yield Fault(subject.at(subject.length_field), declared, means, fix)


@kind("window-below-length", "suspicious")
@each_rope(*_SCALED)
def window_below_length(subject: Subject, rope: Written) -> Iterator[Fault]:
    """A scaling on a model all of whose layers see only a window."""
    window, text = whole(subject.text.get("sliding_window")), subject.text
    model_config = subject.model_config
    if not window or text.get("use_sliding_window") is False or isinstance(model_config, InputError):
        return
    if subject.model_type in _TRAINED_SO:
        return
    kinds = model_config.attention.kinds if model_config.attention else ()
    original = subject.original(rope) or subject.declared
    if original and window <= original and kinds and all(configs.is_local(each) for each in kinds):
        path = subject.at("sliding_window")
        means = f"no layer looks back further than {window:,} tokens, so there is nothing past its training to scale"
        yield Fault(path, window, means, {path: None})


@kind("target-not-reached", "suspicious", of="any")
def target_not_reached(subject: Subject) -> Iterator[Fault]:
    """The target is longer than what the configuration reads."""
    model_config = subject.model_config
    if not subject.target or isinstance(model_config, InputError):
        return
    try:
        needed = plan(model_config, subject.target)
    except InputError:
        return
    if not needed.needed or needed.rope_parameters is None:
        return
    if subject.divisors is None:
        path, declared = subject.at(subject.length_field), subject.declared
        fix: dict[Path, Any] = {subject.at(field): None for field in _OLDER if field in subject.text}
        fix |= {subject.at("rope_parameters"): needed.rope_parameters, path: needed.max_position_embeddings}
    else:
        path, declared = (f"{model_config.model_type}.context_length",), model_config.max_length
        fix = _in_gguf(subject, model_config, needed)
    yield Fault(path, declared, needed.reasons[0], fix)


def _in_gguf(subject: Subject, model_config: ModelConfig, needed: Plan) -> dict[Path, Any]:
    """What to write into the metadata of a GGUF file; nothing where it takes a tensor, which only export can write."""
    config = {"fields": subject.config, "divisors": subject.divisors}
    try:
        way = encode(ENGINES["llama.cpp"], config, model_config, needed.scaling, needed.max_position_embeddings)
    except InputError:
        return {}
    return {(key,): value for key, value in way.changes.items()} if way.config["divisors"] == subject.divisors else {}


def _as_whole(value: object) -> int | None:
    try:
        return whole(int(float(str(value).replace(",", "").replace("_", ""))))
    except (ValueError, OverflowError):
        return None
