"""Faults in the metadata and tensors of a GGUF file, as llama.cpp reads them."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from difflib import get_close_matches
from typing import Any, TypeAlias

from ropewalk.config.gguf import SCALING_TYPES
from ropewalk.scaling.yarn import yarn_mscale
from ropewalk.serving.doctor.examined_config import ExaminedConfig, KeyPath
from ropewalk.serving.doctor.fault_kinds import Answer, Check, Fault, Faults, Severity, fault_kind
from ropewalk.serving.doctor.values import LENGTH_TOLERANCE, finite_number, token_count

_DEFAULT_TYPE = "linear"  # of llama.cpp
_MISSPELLED_TYPE_SIMILARITY = 0.75
_ATTENTION_TOLERANCE = 1e-3

_TYPE = "rope.scaling.type"
_FACTOR = "rope.scaling.factor"
_ATTENTION_FACTOR = "rope.scaling.attn_factor"
_ORIGINAL = "rope.scaling.original_context_length"
_CONTEXT = "context_length"
_CONVERT_AGAIN = "Convert the model again"
_CONVERT_QUESTION = "From which model was this file converted? Its metadata cannot mend a tensor"


class GgufFields:
    """The metadata of a GGUF file, read without the prefix of its architecture.

    Attributes:
        config: the configuration with all fields.
        tensors: the tensors that divide the inverse frequencies, by name.
        type: the type of the scaling, or the default of llama.cpp.
        factor: the factor if it is a number, else None.
        original_length, context_length: tokens if they are numbers of tokens, else None.
    """

    def __init__(self, config: ExaminedConfig) -> None:
        self.config = config
        self.tensors = config.divisors or {}
        self.type = str(self.get(_TYPE) or _DEFAULT_TYPE)
        self.factor = finite_number(self.get(_FACTOR))
        self.original_length = token_count(self.get(_ORIGINAL))
        self.context_length = token_count(self.get(_CONTEXT))

    def path_of(self, key: str) -> KeyPath:
        """Return the path of a field, with the prefix."""
        return (f"{self.config.config.get('general.architecture', '')}.{key}",)

    def get(self, key: str) -> Any:
        """Return the value of a field; None if there is none."""
        return self.config.config.get(self.path_of(key)[0])


GgufCheck: TypeAlias = Callable[[GgufFields], Faults]


def gguf_fault(name: str, severity: Severity) -> Callable[[GgufCheck], Check]:
    """Return a decorator that registers a check of GGUF files under the name of its kind, as `fault_kind` does."""

    def register(check: GgufCheck) -> Check:
        @fault_kind(name, severity, applies_to="gguf")
        @functools.wraps(check)
        def check_fields(config: ExaminedConfig) -> Faults:
            return check(GgufFields(config))

        return check_fields

    return register


@gguf_fault("gguf-type", "wrong")
def gguf_type(gguf: GgufFields) -> Faults:
    """llama.cpp does not know the value of rope.scaling.type and aborts."""
    if gguf.type not in SCALING_TYPES:
        path = gguf.path_of(_TYPE)
        similar = get_close_matches(gguf.type.lower(), SCALING_TYPES, n=1, cutoff=_MISSPELLED_TYPE_SIMILARITY)
        likely = ("yarn", "none") if gguf.get(_ORIGINAL) else ("none", "linear")
        answers = tuple(Answer(name, {path: name}) for name in likely)
        means = f"llama.cpp aborts: it knows only {', '.join(SCALING_TYPES)}"
        fix = {path: similar[0]} if similar else {}
        yield Fault(path, gguf.type, means, fix, "Which method was the model trained with?", answers)


@gguf_fault("gguf-number", "wrong")
def gguf_number(gguf: GgufFields) -> Faults:
    """A factor, base or length is not a number above 0."""
    for key in (_FACTOR, _ATTENTION_FACTOR, "rope.freq_base", _CONTEXT, _ORIGINAL):
        value = gguf.get(key)
        if value is None or (value == 0 and key in (_FACTOR, _ORIGINAL)):  # there, 0 means that there is none
            continue
        if (finite_number(value) or 0) <= 0:
            path = gguf.path_of(key)
            means = "llama.cpp uses the value without checking it, so all angles are wrong"
            answers = (Answer("the default of llama.cpp", {path: None}),) if key == _ATTENTION_FACTOR else ()
            question = f"Which {key} was the model trained with? The config.json that the file was made from tells"
            yield Fault(path, value, means, question=question, answers=answers)


@gguf_fault("gguf-yarn-and-tensor", "wrong")
def gguf_yarn_and_tensor(gguf: GgufFields) -> Faults:
    """The metadata has a scaling and a tensor has divisors; llama.cpp applies both."""
    has_scaling = gguf.type == "yarn" or (gguf.type == "linear" and (gguf.factor or 1) != 1)
    if gguf.tensors and has_scaling:
        path = gguf.path_of(_TYPE)
        found = f"{gguf.type}, and {', '.join(sorted(gguf.tensors))}"
        means = "the model is scaled twice: by the divisors of the tensor, and again by the metadata"
        question = "Which of the two scalings is meant? The tensor is that of the published model"
        answers = (Answer("the tensor", {path: "none", gguf.path_of(_FACTOR): None}),)
        yield Fault(path, found, means, question=question, answers=answers)


@gguf_fault("gguf-tensor-length", "wrong")
def gguf_tensor_length(gguf: GgufFields) -> Faults:
    """A tensor of divisors does not have one number per rotary pair."""
    model_config = gguf.config.model_config
    dim = token_count(gguf.get("rope.dimension_count")) or token_count(gguf.get("attention.key_length"))
    if dim is None and model_config is not None:
        dim = model_config.main_layer.rope.dim
    for name, divisors in gguf.tensors.items():
        if dim and len(divisors) != dim // 2:
            means = f"the model has {dim // 2} rotary pairs, so llama.cpp refuses the file. {_CONVERT_AGAIN}"
            yield Fault((name,), f"{len(divisors)} numbers", means, question=_CONVERT_QUESTION)


@gguf_fault("gguf-tensor-value", "wrong")
def gguf_tensor_value(gguf: GgufFields) -> Faults:
    """A tensor has a divisor that is not above 0."""
    for name, divisors in gguf.tensors.items():
        bad = [pair for pair, divisor in enumerate(divisors) if not (math.isfinite(divisor) and divisor > 0)]
        if bad:
            means = f"the inverse frequency of that pair is infinite, negative or NaN. {_CONVERT_AGAIN}"
            yield Fault((name,), f"{divisors[bad[0]]} at {bad[0]}", means, question=_CONVERT_QUESTION)


@gguf_fault("gguf-one-tensor", "wrong")
def gguf_one_tensor(gguf: GgufFields) -> Faults:
    """Only one of the tensors rope_factors_long and rope_factors_short exists."""
    names = [name for name in gguf.tensors if name.startswith("rope_factors_")]
    if len(names) == 1:
        means = f"llama.cpp chooses between the two by the context length, and one of them is missing. {_CONVERT_AGAIN}"
        yield Fault((names[0],), None, means, question=_CONVERT_QUESTION)


@gguf_fault("gguf-tensor-missing", "wrong")
def gguf_tensor_missing(gguf: GgufFields) -> Faults:
    """The metadata says longrope, but there is no tensor of divisors."""
    if gguf.type == "longrope" and not gguf.tensors:
        path = gguf.path_of(_TYPE)
        means = f"nothing is scaled, since longrope needs divisors. {_CONVERT_AGAIN}, with its lists"
        answers = (Answer("no model: short texts only, unscaled", {path: "none"}),)
        yield Fault(path, "longrope", means, question=_CONVERT_QUESTION, answers=answers)


@gguf_fault("gguf-factor-too-small", "wrong")
def gguf_factor_too_small(gguf: GgufFields) -> Faults:
    """The factor of yarn times the original context length is less than context_length."""
    original, context, factor = gguf.original_length, gguf.context_length, gguf.factor
    if gguf.type != "yarn" or not original or not context or not factor or factor < 0:
        return
    if original <= context and factor * original * LENGTH_TOLERANCE < context:
        path = gguf.path_of(_FACTOR)
        means = f"the factor is enough for {factor:g} x {original:,} tokens, but context_length is {context:,}"
        yield Fault(path, factor, means, {path: context / original})


@gguf_fault("gguf-context-too-small", "suspicious")
def gguf_context_too_small(gguf: GgufFields) -> Faults:
    """`context_length` is less than the factor of yarn times the original context length."""
    original, context, factor = gguf.original_length, gguf.context_length, gguf.factor
    if gguf.type != "yarn" or not original or not context or not factor:
        return
    if factor * original > context * LENGTH_TOLERANCE:
        path = gguf.path_of(_CONTEXT)
        scaled = round(factor * original)
        means = f"the scaling is made for {scaled:,} tokens, but llama.cpp warns past {context:,}, where Ollama stops"
        yield Fault(path, context, means, {path: scaled})


@gguf_fault("gguf-original-missing", "wrong")
def gguf_original_missing(gguf: GgufFields) -> Faults:
    """Yarn has no original_context_length."""
    context = gguf.context_length
    if gguf.type == "yarn" and context and not gguf.get(_ORIGINAL):
        path, factor = gguf.path_of(_ORIGINAL), gguf.factor or 1
        original = max(1, round(context / max(factor, 1)))
        means = f"llama.cpp uses context_length, {context:,}, as the original length"
        question = f"Does context_length include the factor {factor:g}?"
        answers = (
            Answer(f"yes, the model was trained on {original:,} tokens", {path: original}),
            Answer(
                f"no, the model was trained on {context:,} tokens",
                {path: context, gguf.path_of(_CONTEXT): round(context * factor)},
            ),
        )
        yield Fault(path, None, means, question=question, answers=answers)


@gguf_fault("gguf-factor-missing", "suspicious")
def gguf_factor_missing(gguf: GgufFields) -> Faults:
    """Yarn has no factor, or factor 1."""
    original, context = gguf.original_length, gguf.context_length
    if gguf.type != "yarn" or (gguf.factor or 1) != 1 or (original and context and original < context):
        return
    means = "nothing is scaled until llama.cpp is started with --rope-scale"
    yield Fault(gguf.path_of(_FACTOR), gguf.factor, means, {gguf.path_of(_TYPE): "none"})


@gguf_fault("gguf-linear-1", "suspicious")
def gguf_linear_1(gguf: GgufFields) -> Faults:
    """Linear has factor 1, which scales nothing."""
    if gguf.get(_TYPE) == "linear" and gguf.factor in (None, 0.0, 1.0):
        path = gguf.path_of(_TYPE)
        means = "nothing is scaled; if a scaling was intended, its factor is missing"
        yield Fault(path, f"linear, factor {gguf.factor}", means, {path: "none"})


@gguf_fault("gguf-factor-unused", "suspicious")
def gguf_factor_unused(gguf: GgufFields) -> Faults:
    """There is a factor, but rope.scaling.type is none."""
    if gguf.get(_TYPE) == "none" and (gguf.factor or 1) != 1:
        path = gguf.path_of(_FACTOR)
        yield Fault(path, gguf.factor, "llama.cpp ignores the factor of a model with type none", {path: None})


@gguf_fault("gguf-attn-factor", "suspicious")
def gguf_attn_factor(gguf: GgufFields) -> Faults:
    """`attn_factor` is the attention factor of yarn, which llama.cpp applies by itself, so that it is applied twice."""
    written, factor = finite_number(gguf.get(_ATTENTION_FACTOR)), gguf.factor
    if gguf.type != "yarn" or not written or not factor or factor <= 1:
        return
    if abs(written / yarn_mscale(factor) - 1) < _ATTENTION_TOLERANCE:
        path = gguf.path_of(_ATTENTION_FACTOR)
        means = f"llama.cpp multiplies it by 0.1 ln s + 1 = {yarn_mscale(factor):.4f}, so that factor is applied twice"
        yield Fault(path, written, means, {path: None})


@gguf_fault("gguf-dim", "wrong")
def gguf_dim(gguf: GgufFields) -> Faults:
    """The number of rotary dimensions is odd, or larger than a head."""
    dim, head_dim = token_count(gguf.get("rope.dimension_count")), token_count(gguf.get("attention.key_length"))
    if not dim:
        return
    is_too_large = head_dim is not None and dim > head_dim
    if not is_too_large and dim % 2 == 0:
        return
    path = gguf.path_of("rope.dimension_count")
    likely = head_dim if head_dim and is_too_large and head_dim % 2 == 0 else dim - 1
    means = f"a head has only {head_dim} dimensions" if is_too_large else "dimensions are rotated in pairs"
    question = "How many dimensions of a head were rotated in training?"
    answers = (Answer(f"{likely}", {path: likely}),) if likely else ()
    yield Fault(path, dim, means, question=question, answers=answers)
