"""The metadata of a GGUF file against itself and against its tensors, as llama.cpp reads them."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import wraps
from typing import Any

from ropewalk.errors import InputError
from ropewalk.scaling.yarn import yarn_mscale
from ropewalk.serving.doctor.base import Fault, Path, Subject, kind, number, whole

_TYPES = ("none", "linear", "yarn", "longrope")
_SLACK = 1.01


@dataclass(frozen=True)
class Fields:
    """The fields of one architecture, and the tensors."""

    subject: Subject
    tensors: Mapping[str, tuple[float, ...]]

    def key(self, name: str) -> Path:
        return (f"{self.subject.config.get('general.architecture', '')}.{name}",)

    def get(self, name: str) -> Any:
        return self.subject.config.get(self.key(name)[0])

    @property
    def type(self) -> str:
        return str(self.get("rope.scaling.type") or "linear")  # llama.cpp's default

    @property
    def factor(self) -> float | None:
        return number(self.get("rope.scaling.factor"))


def of_fields(check: Callable[[Fields], Iterator[Fault]]) -> Callable[[Subject], Iterator[Fault]]:
    """Make a check of a GGUF's fields a check of any subject."""

    @wraps(check)
    def of_gguf(subject: Subject) -> Iterator[Fault]:
        yield from check(Fields(subject, subject.divisors or {}))

    return of_gguf


@kind("gguf-type", "wrong", of="gguf")
@of_fields
def gguf_type(fields: Fields) -> Iterator[Fault]:
    """A rope.scaling.type that llama.cpp does not know: it aborts."""
    if fields.type not in _TYPES:
        path = fields.key("rope.scaling.type")
        guess = "yarn" if fields.get("rope.scaling.original_context_length") else "none"
        yield Fault(path, fields.type, f"it knows {', '.join(_TYPES)}", {path: guess})


@kind("gguf-number", "wrong", of="gguf")
@of_fields
def gguf_number(fields: Fields) -> Iterator[Fault]:
    """A field of rope.scaling that is no number above 0."""
    names = ("rope.scaling.factor", "rope.scaling.attn_factor", "rope.freq_base", "context_length")
    for name in (*names, "rope.scaling.original_context_length"):
        value = fields.get(name)
        zero_is_none = name in ("rope.scaling.factor", "rope.scaling.original_context_length") and value == 0
        if value is not None and not zero_is_none and not (number(value) or 0) > 0:
            yield Fault(fields.key(name), value, "llama.cpp computes with it as it is", {fields.key(name): None})


@kind("gguf-yarn-and-tensor", "wrong", of="gguf")
@of_fields
def gguf_yarn_and_tensor(fields: Fields) -> Iterator[Fault]:
    """Yarn in the metadata and divisors in a tensor: llama.cpp applies both."""
    scaled = fields.type == "yarn" or (fields.type == "linear" and (fields.factor or 1) != 1)
    if fields.tensors and scaled:
        path = fields.key("rope.scaling.type")
        means = "each pair is divided by its number, and then scaled by the metadata again"
        fix = {path: "none", fields.key("rope.scaling.factor"): None}
        yield Fault(path, f"{fields.type}, and {', '.join(sorted(fields.tensors))}", means, fix)


@kind("gguf-tensor-length", "wrong", of="gguf")
@of_fields
def gguf_tensor_length(fields: Fields) -> Iterator[Fault]:
    """A tensor of divisors that has not one number for each rotary pair."""
    model_config = fields.subject.model_config
    dim = whole(fields.get("rope.dimension_count")) or whole(fields.get("attention.key_length"))
    if dim is None and not isinstance(model_config, InputError):
        dim = model_config.ropes[model_config.main].rope.dim
    for name, values in fields.tensors.items():
        if dim and len(values) != dim // 2:
            means = f"{dim // 2} pairs turn; llama.cpp refuses the file. Convert the model again"
            yield Fault((name,), f"{len(values)} numbers", means)


@kind("gguf-tensor-value", "wrong", of="gguf")
@of_fields
def gguf_tensor_value(fields: Fields) -> Iterator[Fault]:
    """A divisor in a tensor that is not above 0."""
    for name, values in fields.tensors.items():
        broken = [i for i, x in enumerate(values) if not (math.isfinite(x) and x > 0)]
        if broken:
            means = "the angle of that pair is not finite. Convert the model again"
            yield Fault((name,), f"{values[broken[0]]} at {broken[0]}", means)


@kind("gguf-one-tensor", "wrong", of="gguf")
@of_fields
def gguf_one_tensor(fields: Fields) -> Iterator[Fault]:
    """One of rope_factors_long and rope_factors_short without the other."""
    there = [name for name in fields.tensors if name.startswith("rope_factors_")]
    if len(there) == 1:
        means = "llama.cpp takes the one or the other by the context length. Convert the model again"
        yield Fault((there[0],), None, means)


@kind("gguf-tensor-missing", "wrong", of="gguf")
@of_fields
def gguf_tensor_missing(fields: Fields) -> Iterator[Fault]:
    """Longrope in the metadata, and no tensor of divisors."""
    if fields.type == "longrope" and not fields.tensors:
        path = fields.key("rope.scaling.type")
        yield Fault(path, "longrope", "nothing is divided. Convert the model again, with its lists", {path: "none"})


@kind("gguf-factor-too-small", "wrong", of="gguf")
@of_fields
def gguf_factor_too_small(fields: Fields) -> Iterator[Fault]:
    """Yarn's factor times the original context stays below context_length."""
    original, context = whole(fields.get("rope.scaling.original_context_length")), whole(fields.get("context_length"))
    if fields.type != "yarn" or not original or not context or (fields.factor or 0) <= 0:
        return
    reached = (fields.factor or 0) * original
    if original <= context and reached * _SLACK < context:
        path = fields.key("rope.scaling.factor")
        means = f"{fields.factor:g} x {original:,} tokens, but context_length is {context:,}"
        yield Fault(path, fields.factor, means, {path: context / original})


@kind("gguf-context-too-small", "suspicious", of="gguf")
@of_fields
def gguf_context_too_small(fields: Fields) -> Iterator[Fault]:
    """`context_length` stays below what yarn's factor reaches."""
    original, context = whole(fields.get("rope.scaling.original_context_length")), whole(fields.get("context_length"))
    if fields.type == "yarn" and original and context and fields.factor and fields.factor * original > context * _SLACK:
        reached = round(fields.factor * original)
        means = f"llama.cpp warns past {context:,} tokens, and Ollama stops there; the scaling reaches {reached:,}"
        yield Fault(fields.key("context_length"), context, means, {fields.key("context_length"): reached})


@kind("gguf-original-missing", "wrong", of="gguf")
@of_fields
def gguf_original_missing(fields: Fields) -> Iterator[Fault]:
    """Yarn without original_context_length."""
    path, context = fields.key("rope.scaling.original_context_length"), whole(fields.get("context_length"))
    if fields.type == "yarn" and context and not fields.get("rope.scaling.original_context_length"):
        trained = max(1, round(context / max(fields.factor or 1, 1)))
        means = f"llama.cpp takes context_length, {context:,}; with factor {fields.factor or 1:g} it was {trained:,}"
        yield Fault(path, None, means, {path: trained})


@kind("gguf-factor-missing", "suspicious", of="gguf")
@of_fields
def gguf_factor_missing(fields: Fields) -> Iterator[Fault]:
    """Yarn without a factor, or with factor 1."""
    path, original = fields.key("rope.scaling.factor"), whole(fields.get("rope.scaling.original_context_length"))
    context = whole(fields.get("context_length"))
    if fields.type == "yarn" and (fields.factor or 1) == 1 and not (original and context and original < context):
        means = "nothing is scaled until --rope-scale is given"
        yield Fault(path, fields.factor, means, {fields.key("rope.scaling.type"): "none"})


@kind("gguf-linear-1", "suspicious", of="gguf")
@of_fields
def gguf_linear_1(fields: Fields) -> Iterator[Fault]:
    """Linear with factor 1, which scales nothing."""
    if fields.get("rope.scaling.type") == "linear" and fields.factor in (None, 0.0, 1.0):
        path = fields.key("rope.scaling.type")
        yield Fault(path, f"linear, factor {fields.factor}", "a scaling was meant, or none", {path: "none"})


@kind("gguf-factor-unused", "suspicious", of="gguf")
@of_fields
def gguf_factor_unused(fields: Fields) -> Iterator[Fault]:
    """A factor beside rope.scaling.type none, which switches it off."""
    if fields.get("rope.scaling.type") == "none" and (fields.factor or 1) != 1:
        path = fields.key("rope.scaling.factor")
        yield Fault(path, fields.factor, "llama.cpp does not scale a model of type none", {path: None})


@kind("gguf-attn-factor", "suspicious", of="gguf")
@of_fields
def gguf_attn_factor(fields: Fields) -> Iterator[Fault]:
    """`attn_factor` that holds what llama.cpp multiplies in itself."""
    given, factor = number(fields.get("rope.scaling.attn_factor")), fields.factor
    if fields.type == "yarn" and given and factor and factor > 1 and abs(given / yarn_mscale(factor) - 1) < 1e-3:
        path = fields.key("rope.scaling.attn_factor")
        means = f"llama.cpp multiplies its own 0.1 ln s + 1 = {yarn_mscale(factor):.4f} into it: it acts twice"
        yield Fault(path, given, means, {path: None})


@kind("gguf-dim", "wrong", of="gguf")
@of_fields
def gguf_dim(fields: Fields) -> Iterator[Fault]:
    """More rotary dimensions than a head has, or an odd number."""
    dim, head = whole(fields.get("rope.dimension_count")), whole(fields.get("attention.key_length"))
    if dim and ((head and dim > head) or dim % 2):
        path = fields.key("rope.dimension_count")
        guess = head if head and head % 2 == 0 and dim > head else dim - 1
        means = f"a head has {head} channels" if head and dim > head else "rotation needs pairs"
        yield Fault(path, dim, means, {path: guess} if guess else {})
