"""Options of yarn, llama3 and longrope with values that make no sense, or that readers use differently."""

from __future__ import annotations

import math
from typing import Any

from ropewalk.config.architectures import SOFTMAX_SCALED_MODEL_TYPES
from ropewalk.scaling import Scaling
from ropewalk.scaling.longrope import longrope_attention_factor
from ropewalk.scaling.yarn import YaRN, yarn_mscale
from ropewalk.serving.doctor.examined_config import ExaminedConfig, ExaminedRopeDict, KeyPath
from ropewalk.serving.doctor.fault_kinds import Answer, Fault, Faults, fault_kind, for_each_rope_dict
from ropewalk.serving.doctor.values import finite_number

_DEFAULT_BETAS = {"beta_fast": 32.0, "beta_slow": 1.0}
_BETA_QUESTION = "After how many rotations over the original length does the ramp begin or end?"
_DEFAULT_FREQ_FACTORS = {"low_freq_factor": 1.0, "high_freq_factor": 4.0}
_FREQ_FACTOR_QUESTION = "Which low_freq_factor and high_freq_factor was the model trained with?"
_MSCALES = ("mscale", "mscale_all_dim")
# Architectures whose authors trained with yarn and an attention factor of 1.
_TRAINED_WITHOUT_ATTENTION_FACTOR = {"deepseek_v4", "laguna", "ministral3", "mistral_large4_text"}
# Architectures whose authors write both mscales so that the attention factor is 1, not for a softmax factor.
_MSCALES_FOR_ATTENTION_FACTOR_1 = {"ministral3"}
_ATTENTION_TOLERANCE = 0.05  # relative; a factor of 2 gives yarn an attention factor of 1.07
_SQUARED_ATTENTION_TOLERANCE = 0.01


@fault_kind("beta-order", "wrong")
@for_each_rope_dict("yarn")
def beta_order(config: ExaminedConfig, rope_dict: ExaminedRopeDict) -> Faults:
    """`beta_fast` is smaller than `beta_slow`."""
    fast, slow = (finite_number(rope_dict.values.get(name)) or usual for name, usual in _DEFAULT_BETAS.items())
    if 0 < fast < slow:
        means = "the ramp is inverted: fast pairs are scaled, and slow pairs are not"
        fix = {rope_dict.path_of("beta_fast"): slow, rope_dict.path_of("beta_slow"): fast}
        yield Fault(rope_dict.path_of("beta_fast"), f"{fast:g}, and beta_slow {slow:g}", means, fix)


@fault_kind("beta-impossible", "wrong")
@for_each_rope_dict("yarn")
def beta_impossible(config: ExaminedConfig, rope_dict: ExaminedRopeDict) -> Faults:
    """A beta is not above 0, or more rotations than any pair makes over the original length."""
    original = config.original_length(rope_dict) or config.declared_length
    for name, usual in _DEFAULT_BETAS.items():
        value, path = finite_number(rope_dict.values.get(name)), rope_dict.path_of(name)
        if value is None:
            continue
        if value <= 0:
            means = "it is a number of rotations: transformers replaces 0 by the default and fails for less"
            answers = (Answer(f"the default, {usual:g}", {path: usual}),)
            yield Fault(path, value, means, {path: usual} if value == 0 else {}, _BETA_QUESTION, answers)
        elif original and value > original / math.tau:
            rotations = f"{original / math.tau:,.0f} rotations over {original:,} tokens"
            means = f"the fastest pair makes only {rotations}, so all pairs are scaled"
            answers = (Answer(f"the default, {usual:g}", {path: usual}),)
            yield Fault(path, value, means, question=_BETA_QUESTION, answers=answers)


@fault_kind("mscale-alone", "suspicious")
@for_each_rope_dict("yarn")
def mscale_alone(config: ExaminedConfig, rope_dict: ExaminedRopeDict) -> Faults:
    """Only one of mscale and mscale_all_dim is given."""
    present = [name for name in _MSCALES if finite_number(rope_dict.values.get(name))]
    is_default = present == ["mscale"] and rope_dict.values["mscale"] == 1  # 0.1 ln s + 1 for all readers
    if len(present) == 1 and not is_default:
        [missing] = set(_MSCALES) - set(present)
        value = rope_dict.values[present[0]]
        means = (
            "readers disagree: for the attention factor, transformers uses them only together, while the code of "
            "DeepSeek, and vLLM where it runs that attention, use 1 and 0 for a missing one; the softmax factor uses "
            "mscale_all_dim alone"
        )
        question = "Was the model trained with DeepSeek's attention factor and softmax factor?"
        answers = (
            Answer("yes, with the same number for both", {rope_dict.path_of(missing): value}),
            Answer("no, with YaRN's attention factor", {rope_dict.path_of(present[0]): None}),
        )
        yield Fault(rope_dict.path_of(present[0]), value, means, question=question, answers=answers)


@fault_kind("mscale-unread", "suspicious")
@for_each_rope_dict("yarn")
def mscale_unread(config: ExaminedConfig, rope_dict: ExaminedRopeDict) -> Faults:
    """`mscale_all_dim` is given, but the attention of this architecture does not scale its softmax by it."""
    values = [finite_number(rope_dict.values.get(name)) for name in _MSCALES]
    if not all(values) or rope_dict.values.get("attention_factor") is not None:
        return
    if config.model_type in SOFTMAX_SCALED_MODEL_TYPES or config.model_type in _MSCALES_FOR_ATTENTION_FACTOR_1:
        return
    model = config.model_type or "this architecture"
    means = f"{model} uses them only for the attention factor, without DeepSeek's softmax factor that belongs to it"
    fix = {rope_dict.path_of(name): None for name in _MSCALES}
    yield Fault(rope_dict.path_of("mscale_all_dim"), values[1], means, fix)


@fault_kind("attention-factor", "suspicious")
@for_each_rope_dict("yarn", "longrope")
def attention_factor(config: ExaminedConfig, rope_dict: ExaminedRopeDict) -> Faults:
    """The attention factor differs from that of the method, or is its square."""
    written, factor = finite_number(rope_dict.values.get("attention_factor")), rope_dict.factor
    original, declared = config.original_length(rope_dict), config.declared_length
    if factor is None and original and declared and declared > original:
        factor = declared / original
    if written is None or factor is None or config.model_published_like_this:
        return
    if all(rope_dict.values.get(name) for name in _MSCALES):
        return
    if written == 1 and config.model_type in _TRAINED_WITHOUT_ATTENTION_FACTOR:
        return
    if rope_dict.method == "longrope":
        if not original or original < 2 or rope_dict.values.get("short_factor") == rope_dict.values.get("long_factor"):
            return  # equal lists are another method, encoded as longrope
        usual, formula = longrope_attention_factor(factor, original), "sqrt(1 + ln s / ln L)"
    else:
        usual, formula = yarn_mscale(factor), "0.1 ln s + 1"
    if abs(written / usual - 1) <= _ATTENTION_TOLERANCE:
        return
    path = rope_dict.path_of("attention_factor")
    fix: dict[KeyPath, Any] = {}
    if written == 1:
        effect = "with 1, attention is not sharpened as the method needs"
    elif abs(written / usual**2 - 1) <= _SQUARED_ATTENTION_TOLERANCE:
        effect = "this is its square, so it was applied twice"
        fix = {path: None}
    else:
        effect = "attention scores change by the square of the difference"
    question = f"Was the model trained with the attention factor {written:.4g}?"
    answers = (
        Answer("yes: leave it"),
        Answer(f"no, with {usual:.4f}, or it was written for another factor", {path: None}),
    )
    yield Fault(path, written, f"{formula} is {usual:.4f} for factor {factor:g}; {effect}", fix, question, answers)


@fault_kind("llama3-order", "wrong")
@for_each_rope_dict("llama3")
def llama3_order(config: ExaminedConfig, rope_dict: ExaminedRopeDict) -> Faults:
    """`low_freq_factor` is larger than high_freq_factor, or one of them is not above 0."""
    low, high = (finite_number(rope_dict.values.get(name)) for name in _DEFAULT_FREQ_FACTORS)
    if low is None or high is None or 0 < low <= high:  # equal ones are a step, as in Llama 4
        return
    path, found = rope_dict.path_of("low_freq_factor"), f"{low:g}, and high_freq_factor {high:g}"
    means = "there is no range of wavelengths in which the scaling increases smoothly"
    swapped = {path: high, rope_dict.path_of("high_freq_factor"): low} if 0 < high < low else {}
    usual = {rope_dict.path_of(name): value for name, value in _DEFAULT_FREQ_FACTORS.items()}
    yield Fault(path, found, means, swapped, _FREQ_FACTOR_QUESTION, (Answer("1 and 4, as Llama 3.1", usual),))


@fault_kind("llama3-incomplete", "wrong")
@for_each_rope_dict("llama3")
def llama3_incomplete(config: ExaminedConfig, rope_dict: ExaminedRopeDict) -> Faults:
    """Llama3 has no low_freq_factor or no high_freq_factor."""
    for name, usual in _DEFAULT_FREQ_FACTORS.items():
        if rope_dict.values.get(name) is None:
            path = rope_dict.path_of(name)
            means = "transformers and vLLM refuse llama3 without it"
            answers = (Answer(f"{usual:g}, as Llama 3.1", {path: usual}),)
            yield Fault(path, None, means, question=_FREQ_FACTOR_QUESTION, answers=answers)


@fault_kind("truncate-not-bool", "wrong")
@for_each_rope_dict("yarn")
def truncate_not_bool(config: ExaminedConfig, rope_dict: ExaminedRopeDict) -> Faults:
    """`truncate` is not true or false."""
    value, path = rope_dict.values.get("truncate"), rope_dict.path_of("truncate")
    if value is None or isinstance(value, bool):
        return
    intended = str(value).strip().lower() not in ("false", "0", "no", "0.0", "")
    effect = "rounds" if value else "does not round"
    means = f"transformers checks only whether it is empty, so with {value!r} it {effect} the ramp to whole pairs"
    actual = config.with_changes({path: bool(value)}).interpretation
    yield Fault(path, value, means, {path: intended}, actual=actual)


@fault_kind("phi3-yarn", "wrong")
@for_each_rope_dict("yarn")
def phi3_yarn(config: ExaminedConfig, rope_dict: ExaminedRopeDict) -> Faults:
    """Yarn is on a Phi-3 model, whose configuration class accepts only longrope."""
    model_config = config.model_config
    if config.model_type != "phi3" or model_config is None or not isinstance(model_config.main_layer.scaling, YaRN):
        return
    layer = model_config.main_layer
    # The method of the base class writes any scaling as longrope lists.
    as_lists = Scaling.to_rope_parameters(layer.scaling, layer.rope)
    if as_lists is not None:
        means = "Phi3Config renames it to longrope and then refuses it; longrope lists can give the same frequencies"
        path, fix = rope_dict.path_of("type"), {rope_dict.path: as_lists}
        yield Fault(path, rope_dict.rope_type, means, fix, expected=config.interpretation)
