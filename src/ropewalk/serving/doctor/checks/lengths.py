"""Lengths and factors that contradict each other, are missing, or are not used as they appear to be."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ropewalk import config as configs
from ropewalk.config import ModelConfig, get_text_config_dict
from ropewalk.errors import InputError
from ropewalk.planning import Plan, plan
from ropewalk.serving.doctor.examined_config import ORIGINAL_LENGTH, ExaminedConfig, ExaminedRopeDict, KeyPath
from ropewalk.serving.doctor.fault_kinds import Answer, Fault, Faults, fault_kind, for_each_rope_dict
from ropewalk.serving.doctor.values import LENGTH_TOLERANCE, finite_number, parse_token_count, token_count
from ropewalk.serving.engines import ENGINES
from ropewalk.serving.engines.encode import encode

# Positions of MRoPE grow more slowly than tokens, since an image takes as many positions as its longer side. The makers
# of Qwen3-VL advise a factor of 2 or 3 for four times the original length.
# Source: README.md of QwenLM/Qwen3-VL, "Processing Long Texts".
_MROPE_TOKENS_PER_POSITION = 2.0
_SMALLEST_FACTOR = 1e-12  # a smaller one has no sensible inverse
_SCALED_METHODS = ("linear", "dynamic", "yarn", "longrope", "llama3")
# Architectures that were trained with yarn although all layers attend to a window. The privacy filter was made from
# gpt-oss, which has yarn.
_TRAINED_WITH_YARN_AND_WINDOW = {"openai_privacy_filter"}
_TARGET_QUESTION = "Serve shorter texts, or export another scaling? ropewalk plan and ropewalk export have more"


@fault_kind("length-not-whole", "wrong")
def length_not_whole(config: ExaminedConfig) -> Faults:
    """A length is not a positive whole number of tokens."""
    declared = (config.path_of(config.length_field), config.text.get(config.length_field))
    for path, value in [declared, *config.find_values(ORIGINAL_LENGTH)]:
        if value is not None and token_count(value) is None:
            likely = parse_token_count(value)
            means = "some engines refuse the value, others compute with a wrong length"
            question = "How many tokens was the model trained on?"
            yield Fault(path, value, means, {path: likely} if likely else {}, question)


@fault_kind("factor-too-small", "wrong")
@for_each_rope_dict("yarn")
def factor_too_small(config: ExaminedConfig, rope_dict: ExaminedRopeDict) -> Faults:
    """The factor of yarn times the original length is less than max_position_embeddings."""
    original, declared, factor = config.original_length(rope_dict), config.declared_length, rope_dict.factor
    if not original or not declared or not factor or original > declared or config.model_published_like_this:
        return
    tokens_per_position = _MROPE_TOKENS_PER_POSITION if rope_dict.values.get("mrope_section") else 1.0
    if factor * original * tokens_per_position * LENGTH_TOLERANCE < declared:
        path = rope_dict.path_of("factor")
        scaled = f"{factor:g} x {original:,} = {factor * original:,.0f}"
        means = f"the scaling is made for {scaled} tokens, but the configuration declares {declared:,}"
        if tokens_per_position == 1:
            yield Fault(path, rope_dict.values["factor"], means, {path: declared / original})
            return
        question = "How many positions do the images and texts take? Those of MRoPE grow more slowly than tokens"
        answers = (
            Answer("half as many as tokens", {path: declared / original / tokens_per_position}),
            Answer("texts only, as many as tokens", {path: declared / original}),
        )
        yield Fault(path, rope_dict.values["factor"], means, question=question, answers=answers)


@fault_kind("declared-too-small", "suspicious")
@for_each_rope_dict("yarn")
def declared_too_small(config: ExaminedConfig, rope_dict: ExaminedRopeDict) -> Faults:
    """`max_position_embeddings` is less than the factor of yarn times the original length."""
    original, declared, factor = config.original_length(rope_dict), config.declared_length, rope_dict.factor
    if not original or not declared or not factor or original > declared:
        return
    if factor * original > declared * LENGTH_TOLERANCE and config.model_published_like_this is None:
        path = config.path_of(config.length_field)
        needed = declared / original
        cheaper = "no scaling" if needed <= LENGTH_TOLERANCE else f"a factor of {needed:.4g}"
        means = (
            f"the scaling is made for {factor:g} x {original:,} tokens, but engines that take their maximum length "
            f"from this field stop at {declared:,}; if that is enough, {cheaper} costs less quality"
        )
        yield Fault(path, declared, means, {path: round(factor * original)})


@fault_kind("original-missing", "wrong")
@for_each_rope_dict("yarn", "llama3", "longrope")
def original_missing(config: ExaminedConfig, rope_dict: ExaminedRopeDict) -> Faults:
    """Yarn, llama3 or longrope has no original length."""
    declared, path = config.declared_length, rope_dict.path_of(ORIGINAL_LENGTH)
    if config.original_length(rope_dict) or rope_dict.values.get(ORIGINAL_LENGTH) is not None or not declared:
        return
    factor = rope_dict.factor or 1.0
    means = f"transformers uses max_position_embeddings, {declared:,}, as the original length; other readers refuse it"
    published = config.published_original_length
    if published:
        yield Fault(path, None, means, {path: published})
        return
    question = f"Does max_position_embeddings, {declared:,}, include the factor {factor:g}?"
    answers = (
        Answer(
            f"no, the model was trained on {declared:,} tokens",
            {path: declared, config.path_of(config.length_field): round(declared * factor)},
        ),
        Answer("yes, the model was trained on less", {path: max(1, round(declared / factor))}),
    )
    yield Fault(path, None, means, question=question, answers=answers if factor > 1 else answers[:1])


@fault_kind("original-past-declared", "wrong")
@for_each_rope_dict("yarn", "llama3", "longrope")
def original_past_declared(config: ExaminedConfig, rope_dict: ExaminedRopeDict) -> Faults:
    """The original length is larger than max_position_embeddings."""
    original, declared = config.original_length(rope_dict), config.declared_length
    if original and declared and original > declared:
        path = config.path_of(config.length_field)
        means = f"engines stop at {declared:,} tokens, before the {original:,} that the model was trained on"
        yield Fault(path, declared, means, {path: round(original * (rope_dict.factor or 1.0))})


@fault_kind("original-twice", "wrong")
@for_each_rope_dict()
def original_twice(config: ExaminedConfig, rope_dict: ExaminedRopeDict) -> Faults:
    """There are two different original lengths: in the rope dict and beside it."""
    outside, inside = token_count(config.text.get(ORIGINAL_LENGTH)), token_count(rope_dict.values.get(ORIGINAL_LENGTH))
    if not outside or not inside or outside == inside:
        return
    outside_path, path = config.path_of(ORIGINAL_LENGTH), rope_dict.path_of(ORIGINAL_LENGTH)
    means = f"transformers uses {outside:,}, beside the dict; engines that read the dict use {inside:,}"
    actual = config.with_changes({outside_path: None}).interpretation
    fixes = {outside: {path: outside}, inside: {outside_path: inside}}
    # If only one of them times the factor is the declared length, that one is right.
    scaled = [original for original in fixes if original * (rope_dict.factor or 0) == config.declared_length]
    fix = fixes[scaled[0]] if len(scaled) == 1 else {}
    question = "On how many tokens was the model trained?"
    answers = tuple(Answer(f"{original:,}", changes) for original, changes in fixes.items())
    yield Fault(path, inside, means, fix, question, answers, actual, config.interpretation)


@fault_kind("factor-missing", "wrong")
@for_each_rope_dict("linear", "dynamic", "yarn", "llama3")
def factor_missing(config: ExaminedConfig, rope_dict: ExaminedRopeDict) -> Faults:
    """A scaling has no factor."""
    if rope_dict.values.get("factor") is not None or rope_dict.values.get("alpha") is not None:
        return
    original, declared, path = config.original_length(rope_dict), config.declared_length, rope_dict.path_of("factor")
    fix = {path: declared / original} if original and declared and declared > original else {}
    question = "By which factor is the original length to be extended?"
    answers = (Answer("by none", rope_dict.fix_without_scaling),)
    yield Fault(path, None, f"transformers refuses {rope_dict.method} without a factor", fix, question, answers)


@fault_kind("factor-below-1", "wrong")
@for_each_rope_dict(*_SCALED_METHODS)
def factor_below_1(config: ExaminedConfig, rope_dict: ExaminedRopeDict) -> Faults:
    """A factor is below 1."""
    factor, path = finite_number(rope_dict.values.get("factor")), rope_dict.path_of("factor")
    if factor is None or factor >= 1:
        return
    means = "pairs would rotate faster than in training; llama.cpp's rope_freq_scale is the inverse of a factor"
    inverse = 1 / factor if factor > _SMALLEST_FACTOR else 1.0
    original, declared = config.original_length(rope_dict), config.declared_length
    is_inverse = original is not None and declared is not None and round(original * inverse) == declared
    question = "Which factor is meant?"
    answers = (Answer(f"the inverse, {inverse:.4g}", {path: inverse}), Answer("none", rope_dict.fix_without_scaling))
    yield Fault(path, factor, means, {path: inverse} if is_inverse else {}, question, answers)


@fault_kind("factor-1", "suspicious")
@for_each_rope_dict("linear", "dynamic", "yarn", "llama3")
def factor_1(config: ExaminedConfig, rope_dict: ExaminedRopeDict) -> Faults:
    """A scaling has factor 1, which changes nothing."""
    if finite_number(rope_dict.values.get("factor")) != 1 or rope_dict.values.get("alpha") is not None:
        return
    original, declared = config.original_length(rope_dict), config.declared_length
    if original and declared and original * LENGTH_TOLERANCE < declared:
        return  # the model declares more, so the factor itself is wrong: factor-too-small
    means = "nothing is scaled, and some engines use slower code for scaled models"
    yield Fault(rope_dict.path_of("factor"), rope_dict.values["factor"], means, rope_dict.fix_without_scaling)


@fault_kind("dynamic-original", "suspicious")
@for_each_rope_dict("dynamic")
def dynamic_original(config: ExaminedConfig, rope_dict: ExaminedRopeDict) -> Faults:
    """Dynamic has an original length, which transformers ignores."""
    original, declared = config.original_length(rope_dict), config.declared_length
    if original and declared and original != declared:
        means = f"transformers scales past max_position_embeddings, {declared:,} tokens, and not past {original:,}"
        yield Fault(rope_dict.path_of(ORIGINAL_LENGTH), original, means, _declare_original(config, rope_dict, original))


@fault_kind("length-multiplied", "suspicious")
@for_each_rope_dict("linear")
def length_multiplied(config: ExaminedConfig, rope_dict: ExaminedRopeDict) -> Faults:
    """With linear, max_position_embeddings is already the length after scaling, which vLLM multiplies again."""
    original, declared = config.original_length(rope_dict), config.declared_length
    if not original or not declared or declared <= original or config.model_type.startswith("gemma3"):
        return
    means = (
        "vLLM multiplies max_position_embeddings by the factor once more, since linear has no original length: it "
        f"would accept {declared * (rope_dict.factor or 1):,.0f} tokens"
    )
    path = config.path_of(config.length_field)
    yield Fault(path, declared, means, _declare_original(config, rope_dict, original))


@fault_kind("window-below-length", "suspicious")
@for_each_rope_dict(*_SCALED_METHODS)
def window_below_length(config: ExaminedConfig, rope_dict: ExaminedRopeDict) -> Faults:
    """There is a scaling, but all layers attend only to a sliding window."""
    window, model_config = token_count(config.text.get("sliding_window")), config.model_config
    if not window or config.text.get("use_sliding_window") is False or model_config is None:
        return
    if config.model_type in _TRAINED_WITH_YARN_AND_WINDOW:
        return
    layer_types = model_config.attention.layer_types if model_config.attention else ()
    original = config.original_length(rope_dict) or config.declared_length
    ropes_are_local = all(configs.is_local(name) or name == configs.ALL_LAYERS for name in model_config.ropes)
    if not original or window > original or not layer_types or not ropes_are_local:
        return
    if all(configs.is_local(name) for name in layer_types):
        path = config.path_of("sliding_window")
        means = f"no layer attends to tokens further than {window:,} back, so no distance exceeds those of the training"
        question = "Was the model trained with this scaling, with this window, or with both?"
        answers = (
            Answer("with both: leave it"),
            Answer(f"with the window of {window:,} tokens, which reads any length", rope_dict.fix_without_scaling),
            Answer("with the scaling: all layers attend to the whole text, and its KV cache grows", {path: None}),
        )
        yield Fault(path, window, means, question=question, answers=answers)


@fault_kind("dual-chunk", "suspicious")
def dual_chunk(config: ExaminedConfig) -> Faults:
    """The length depends on dual chunk attention, which most readers do not have."""
    field = "dual_chunk_attention_config"
    dual_chunk_config, declared = config.text.get(field), config.declared_length
    if not isinstance(dual_chunk_config, Mapping) or not declared:
        return
    original = token_count(dual_chunk_config.get(ORIGINAL_LENGTH))
    if original and original < (config.target or declared):
        path = config.path_of(field)
        means = (
            f"the model was trained on {original:,} tokens and reads more with dual chunk attention; a reader without "
            f"it, such as transformers, has no method for texts past {original:,} tokens"
        )
        question = "Does the engine have dual chunk attention?"
        answers = (
            Answer("yes: leave it"),
            Answer(f"no, serve up to {original:,} tokens", {path: None, config.path_of(config.length_field): original}),
        )
        yield Fault(path, dict(dual_chunk_config), means, question=question, answers=answers)


@fault_kind("target-not-reached", "suspicious", applies_to="any")
def target_not_reached(config: ExaminedConfig) -> Faults:
    """The target is longer than what the configuration is made for."""
    model_config = config.model_config
    if not config.target or model_config is None:
        return
    try:
        planned = plan(model_config, config.target)
    except InputError:
        return
    if not planned.needed or planned.rope_parameters is None:
        return
    path = config.path_of(config.length_field)
    if config.is_gguf:
        path = (f"{model_config.model_type}.context_length",)
    fix = _plan_changes(config, model_config, planned)
    yield Fault(path, model_config.max_length, planned.reasons[0], fix, _TARGET_QUESTION)


def _declare_original(config: ExaminedConfig, rope_dict: ExaminedRopeDict, original: int) -> dict[KeyPath, Any]:
    """Return the fix that declares the original length and removes the field that is ignored."""
    return {
        rope_dict.path_of(ORIGINAL_LENGTH): None,
        config.path_of(ORIGINAL_LENGTH): None,
        config.path_of(config.length_field): original,
    }


def _plan_changes(config: ExaminedConfig, model_config: ModelConfig, planned: Plan) -> dict[KeyPath, Any]:
    """Return the fields to write for a plan; empty if there are none, or if a tensor of a GGUF file would change."""
    engine = ENGINES["llama.cpp" if config.is_gguf else config.engine or "transformers"]
    try:
        candidate = encode(engine, config.engine_config, model_config, planned.scaling, planned.max_position_embeddings)
    except InputError:
        return {}
    if config.is_gguf:
        if candidate.config["divisors"] != config.divisors:
            return {}
        return {(key,): value for key, value in candidate.changes.items()}
    return {config.path_of(key): value for key, value in get_text_config_dict(candidate.changes).items()}
