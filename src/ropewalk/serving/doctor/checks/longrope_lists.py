"""Faults in the lists of longrope, which have one divisor per rotary pair."""

from __future__ import annotations

from typing import Any

import numpy as np

from ropewalk import config as configs
from ropewalk.serving.doctor.examined_config import ExaminedConfig, ExaminedRopeDict, KeyPath
from ropewalk.serving.doctor.fault_kinds import Answer, Fault, Faults, fault_kind, for_each_rope_dict
from ropewalk.serving.doctor.values import finite_number, parse_number

_PARTIAL = "partial_rotary_factor"
_LISTS = ("short_factor", "long_factor")
_LISTS_QUESTION = "Which lists did the makers of the model publish?"
_MIN_DIVISOR = 0.95  # a search may find a divisor just below 1 for a fast pair; MiniCPM 4 has 0.998
_MIN_OF_LARGEST_BEFORE = 0.9  # a divisor below this part of the largest one before it is out of order


@fault_kind("list-missing", "wrong")
@for_each_rope_dict("longrope")
def list_missing(config: ExaminedConfig, rope_dict: ExaminedRopeDict) -> Faults:
    """Longrope has no short list or no long list."""
    for name, other in (_LISTS, _LISTS[::-1]):
        if rope_dict.values.get(name) is None:
            path, other_list = rope_dict.path_of(name), rope_dict.values.get(other)
            fix = _published_lists(config, rope_dict, name)
            answers: tuple[Answer, ...] = ()
            if isinstance(other_list, list):
                answers = (Answer("the other list: every length is scaled alike", {path: other_list}),)
                if name == "short_factor":
                    unscaled = Answer("1 for all pairs: short texts are not scaled", {path: [1.0] * len(other_list)})
                    answers = (unscaled, *answers)
            yield Fault(path, None, "engines refuse the configuration", fix, _LISTS_QUESTION, answers)


@fault_kind("list-value", "wrong")
@for_each_rope_dict("longrope")
def list_value(config: ExaminedConfig, rope_dict: ExaminedRopeDict) -> Faults:
    """A list of longrope is not a list of numbers above 0."""
    for name in _LISTS:
        value, path = rope_dict.values.get(name), rope_dict.path_of(name)
        if value is None or _positive_numbers(value) is not None:
            continue
        found, fix = value, _published_lists(config, rope_dict, name)
        if isinstance(value, list):
            bad = [pair for pair, divisor in enumerate(value) if (finite_number(divisor) or 0) <= 0]
            if bad:
                found = f"{value[bad[0]]!r} at {bad[0]}"
            parsed = [parse_number(divisor) for divisor in value]
            if not fix and _positive_numbers(parsed):
                fix = {path: parsed}
        means = "the inverse frequency of each pair is divided by its number, which must be above 0"
        yield Fault(path, found, means, fix, _LISTS_QUESTION)


@fault_kind("list-lengths", "wrong")
@for_each_rope_dict("longrope")
def list_lengths(config: ExaminedConfig, rope_dict: ExaminedRopeDict) -> Faults:
    """The short and the long list have different lengths."""
    short, long = (rope_dict.values.get(name) for name in _LISTS)
    if isinstance(short, list) and isinstance(long, list) and len(short) != len(long):
        name, longer = ("short_factor", long) if len(short) < len(long) else ("long_factor", short)
        path, found = rope_dict.path_of(name), f"{len(short)} and {len(long)} numbers"
        means = "both lists need one number per rotary pair, so one of them is wrong"
        answers = (Answer("the other list: every length is scaled alike", {path: longer}),)
        yield Fault(path, found, means, _published_lists(config, rope_dict, name), _LISTS_QUESTION, answers)


@fault_kind("list-length", "wrong")
@for_each_rope_dict("longrope")
def list_length(config: ExaminedConfig, rope_dict: ExaminedRopeDict) -> Faults:
    """The lists do not have one number per rotary pair."""
    short, long = (_positive_numbers(rope_dict.values.get(name)) for name in _LISTS)
    model_config = config.model_config
    if not short or not long or len(short) != len(long) or model_config is None:
        return
    num_pairs = model_config.main_layer.rope.dim // 2
    if rope_dict.layer_type in (configs.ALL_LAYERS, model_config.main_layer_type) and len(short) != num_pairs:
        means = f"the model has {num_pairs} rotary pairs; wrong lists, or partial_rotary_factor is missing"
        fix = _published_lists(config, rope_dict, *_LISTS)
        answers: tuple[Answer, ...] = ()
        if len(short) < num_pairs:
            fraction = len(short) / num_pairs
            answers = (Answer(f"these, for {fraction:.4g} of each head", {config.path_of(_PARTIAL): fraction}),)
        yield Fault(rope_dict.path_of("short_factor"), f"{len(short)} numbers", means, fix, _LISTS_QUESTION, answers)


@fault_kind("list-below-1", "suspicious")
@for_each_rope_dict("longrope")
def list_below_1(config: ExaminedConfig, rope_dict: ExaminedRopeDict) -> Faults:
    """A divisor is below 1, so that its pair rotates faster than in training."""
    for name in _LISTS:
        divisors = _positive_numbers(rope_dict.values.get(name)) or []
        below = [pair for pair, divisor in enumerate(divisors) if divisor < _MIN_DIVISOR]
        if below:
            path, means = rope_dict.path_of(name), f"pair {below[0]} rotates faster than in training"
            answers = (
                Answer("1: the pair is not scaled", {path: [max(1.0, divisor) for divisor in divisors]}),
                Answer("the inverse", {path: [max(1 / divisor, divisor) for divisor in divisors]}),
            )
            found, fix = f"{divisors[below[0]]:g} at {below[0]}", _published_lists(config, rope_dict, name)
            yield Fault(path, found, means, fix, _LISTS_QUESTION, answers)


@fault_kind("list-falls", "suspicious")
@for_each_rope_dict("longrope")
def list_falls(config: ExaminedConfig, rope_dict: ExaminedRopeDict) -> Faults:
    """Divisors decrease, although slower pairs need larger ones."""
    for name in _LISTS:
        divisors = _positive_numbers(rope_dict.values.get(name)) or []
        out_of_order = np.flatnonzero(divisors < _MIN_OF_LARGEST_BEFORE * np.maximum.accumulate(divisors))
        if out_of_order.size and min(divisors) >= _MIN_DIVISOR:
            path, pair = rope_dict.path_of(name), int(out_of_order[0])
            means = f"the divisor of pair {pair} is smaller than one of a faster pair, so an entry is out of order"
            found, fix = f"{divisors[pair]:g} at {pair}", _published_lists(config, rope_dict, name)
            answers = (Answer("the same numbers, sorted", {path: sorted(divisors)}),)
            yield Fault(path, found, means, fix, _LISTS_QUESTION, answers)


def _positive_numbers(value: object) -> list[float] | None:
    """Return the value if it is a list of numbers above 0 and not empty, else None."""
    if not isinstance(value, list) or not value:
        return None
    numbers = [number for item in value if (number := finite_number(item)) is not None and number > 0]
    return numbers if len(numbers) == len(value) else None


def _published_lists(config: ExaminedConfig, rope_dict: ExaminedRopeDict, *names: str) -> dict[KeyPath, Any]:
    """Return the fix with those of the named lists that the published model has."""
    published = config.published_model.config.get("rope_scaling") if config.published_model else None
    return {rope_dict.path_of(name): published[name] for name in names if published and published.get(name)}
