"""Options of yarn and llama3 that make no sense, or not the sense they seem to."""

from __future__ import annotations

import math
from collections.abc import Iterator

from ropewalk.scaling.yarn import yarn_mscale
from ropewalk.serving.doctor.base import Fault, Subject, Written, each_rope, kind, number
from ropewalk.serving.engines.folder_engine import SOFTMAX_SCALED

_COLD = {"mistral_large4_text"}  # whose makers trained with yarn and an attention factor of 1
_PAIR = ("mscale", "mscale_all_dim")
_FAR = 0.05  # relative; a factor of 2 makes yarn's attention factor 1.07


@kind("beta-order", "wrong")
@each_rope("yarn")
def beta_order(subject: Subject, rope: Written) -> Iterator[Fault]:
    """`beta_fast` below beta_slow."""
    fast, slow = _beta(rope, "beta_fast", 32.0), _beta(rope, "beta_slow", 1.0)
    if 0 < fast < slow:
        means = "the ramp runs backwards: fast pairs are slowed and slow ones are not"
        fix = {rope.at("beta_fast"): slow, rope.at("beta_slow"): fast}
        yield Fault(rope.at("beta_fast"), f"{fast:g}, and beta_slow {slow:g}", means, fix)


@kind("beta-impossible", "wrong")
@each_rope("yarn")
def beta_impossible(subject: Subject, rope: Written) -> Iterator[Fault]:
    """A beta of 0 or less, or of more turns than any pair makes in training."""
    original = subject.original(rope) or subject.declared
    for name, usual in (("beta_fast", 32.0), ("beta_slow", 1.0)):
        value = number(rope.values.get(name))
        if value is None or (value > 0 and (not original or value <= original / math.tau)):
            continue
        means = (
            f"over {original:,} tokens the fastest pair makes {original / math.tau:,.0f} turns, so every pair is slowed"
            if value > 0 and original
            else "it counts turns; transformers takes 0 for not given, and cannot form the logarithm of less"
        )
        yield Fault(rope.at(name), value, means, {rope.at(name): usual})


@kind("mscale-alone", "suspicious")
@each_rope("yarn")
def mscale_alone(subject: Subject, rope: Written) -> Iterator[Fault]:
    """One of mscale and mscale_all_dim without the other."""
    given = [name for name in _PAIR if number(rope.values.get(name))]
    if len(given) == 1:
        other = next(name for name in _PAIR if name not in given)
        value = rope.values[given[0]]
        means = (
            "transformers' attention factor uses them only as a pair, DeepSeek's own code and vLLM take 1 and 0 "
            "for what is missing, the softmax factor uses mscale_all_dim alone: every reader makes something else of it"
        )
        yield Fault(rope.at(given[0]), value, means, {rope.at(other): value})


@kind("mscale-unread", "suspicious")
@each_rope("yarn")
def mscale_unread(subject: Subject, rope: Written) -> Iterator[Fault]:
    """`mscale_all_dim` on a model whose attention does not scale its softmax by it."""
    pair = [number(rope.values.get(name)) for name in _PAIR]
    if not all(pair) or subject.model_type in SOFTMAX_SCALED or rope.values.get("attention_factor") is not None:
        return
    if subject.model_type == "ministral3":
        return  # its makers write the pair for an attention factor of 1
    means = (
        f"of {subject.model_type or 'this model'} they make only the attention factor, their quotient; DeepSeek's "
        "softmax factor, which belongs to it, is lost"
    )
    yield Fault(rope.at("mscale_all_dim"), pair[1], means, {rope.at(name): None for name in _PAIR})


@kind("attention-factor", "suspicious")
@each_rope("yarn", "longrope")
def attention_factor(subject: Subject, rope: Written) -> Iterator[Fault]:
    """An attention factor other than the method's own, or its square."""
    given, factor = number(rope.values.get("attention_factor")), rope.factor
    original, declared = subject.original(rope), subject.declared
    factor = factor or (declared / original if original and declared and declared > original else None)
    if given is None or factor is None or subject.as_published or all(rope.values.get(name) for name in _PAIR):
        return
    if given == 1 and subject.model_type in _COLD:
        return
    lists = (rope.values.get("short_factor"), rope.values.get("long_factor"))
    if rope.method == "longrope" and (not original or original < 2 or lists[0] == lists[1]):
        return  # equal lists are another method, written so
    own = yarn_mscale(factor) if rope.method == "yarn" else math.sqrt(1 + math.log(factor) / math.log(original or 2))
    if abs(given / own - 1) <= _FAR:
        return
    formula = "0.1 ln s + 1" if rope.method == "yarn" else "sqrt(1 + ln s / ln L)"
    why = "it was multiplied in twice" if abs(given / own**2 - 1) <= _FAR / 5 else "every score changes by its square"
    why = "it was left out: the attention stays as cold as without scaling" if given == 1 else why
    means = f"{formula} is {own:.4f} for factor {factor:g}; {why}"
    yield Fault(rope.at("attention_factor"), given, means, {rope.at("attention_factor"): None})


@kind("llama3-order", "wrong")
@each_rope("llama3")
def llama3_order(subject: Subject, rope: Written) -> Iterator[Fault]:
    """`low_freq_factor` above high_freq_factor, or one of them not above 0."""
    low, high = number(rope.values.get("low_freq_factor")), number(rope.values.get("high_freq_factor"))
    if low is None or high is None or 0 < low <= high:  # the same is a step, as in Llama 4
        return
    swapped = (high, low) if 0 < high < low else (1.0, 4.0)
    fix = dict(zip((rope.at("low_freq_factor"), rope.at("high_freq_factor")), swapped, strict=True))
    yield Fault(rope.at("low_freq_factor"), f"{low:g}, and high_freq_factor {high:g}", "there is no band to blend", fix)


@kind("llama3-incomplete", "wrong")
@each_rope("llama3")
def llama3_incomplete(subject: Subject, rope: Written) -> Iterator[Fault]:
    """Llama3 without low_freq_factor or high_freq_factor."""
    for name, usual in (("low_freq_factor", 1.0), ("high_freq_factor", 4.0)):
        if rope.values.get(name) is None:
            yield Fault(rope.at(name), None, "transformers and vLLM refuse llama3 without it", {rope.at(name): usual})


def _beta(rope: Written, name: str, usual: float) -> float:
    return number(rope.values.get(name)) or usual
