"""The lists of longrope: a divisor for every pair."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import accumulate
from typing import Any

from ropewalk import config as configs
from ropewalk.config.published import PublishedModel
from ropewalk.errors import InputError
from ropewalk.serving.doctor.base import Fault, Path, Subject, Written, as_number, each_rope, kind, number

_LISTS = ("short_factor", "long_factor")
_FASTER = 0.95  # a search may find a divisor just below 1 for a fast pair; MiniCPM 4 has 0.998
_FALLS = 0.9  # of the largest before it


@kind("list-missing", "wrong")
@each_rope("longrope")
def list_missing(subject: Subject, rope: Written) -> Iterator[Fault]:
    """Longrope without its short or its long list."""
    for name, other in (_LISTS, _LISTS[::-1]):
        if rope.values.get(name) is None:
            there = rope.values.get(other)
            means = "readers refuse it; the other list in its place divides alike at every length"
            fix = {rope.at(name): there} if isinstance(there, list) else {}
            yield Fault(rope.at(name), None, means, _published(subject, rope, name) or fix)


@kind("list-value", "wrong")
@each_rope("longrope")
def list_value(subject: Subject, rope: Written) -> Iterator[Fault]:
    """A list of longrope that is no list of numbers above 0."""
    for name in _LISTS:
        value = rope.values.get(name)
        if value is None or _numbers(value) is not None:
            continue
        broken = [i for i, x in enumerate(value) if not (number(x) or 0) > 0] if isinstance(value, list) else []
        read = [as_number(x) for x in value] if isinstance(value, list) else []
        whole_again: dict[Path, Any] = {rope.at(name): read} if _numbers(read) else {}
        found = f"{value[broken[0]]!r} at {broken[0]}" if broken else value
        means = "each pair is divided by its number, so it must be above 0"
        yield Fault(rope.at(name), found, means, _published(subject, rope, name) or whole_again)


@kind("list-lengths", "wrong")
@each_rope("longrope")
def list_lengths(subject: Subject, rope: Written) -> Iterator[Fault]:
    """A short and a long list of different lengths."""
    short, long = (rope.values.get(name) for name in _LISTS)
    if isinstance(short, list) and isinstance(long, list) and len(short) != len(long):
        name, better = ("short_factor", long) if len(short) < len(long) else ("long_factor", short)
        means = f"{len(short)} and {len(long)} numbers for the same pairs"
        fix = _published(subject, rope, name) or {rope.at(name): better}
        yield Fault(rope.at(name), f"{len(short)} and {len(long)} numbers", means, fix)


@kind("list-length", "wrong")
@each_rope("longrope")
def list_length(subject: Subject, rope: Written) -> Iterator[Fault]:
    """Lists that have not one number for each rotary pair."""
    short, long = (_numbers(rope.values.get(name)) for name in _LISTS)
    model_config = subject.model_config
    if not short or not long or len(short) != len(long) or isinstance(model_config, InputError):
        return
    pairs = model_config.ropes[model_config.main].rope.dim // 2
    if rope.layers in (configs.ALL_LAYERS, model_config.main) and len(short) != pairs:
        means = f"{pairs} pairs turn: a model of another size, or partial_rotary_factor was forgotten"
        fix = {**_published(subject, rope, "short_factor"), **_published(subject, rope, "long_factor")}
        yield Fault(rope.at("short_factor"), f"{len(short)} numbers", means, fix)


@kind("list-below-1", "suspicious")
@each_rope("longrope")
def list_below_1(subject: Subject, rope: Written) -> Iterator[Fault]:
    """A divisor below 1, which turns a pair faster than in training."""
    for name in _LISTS:
        values = _numbers(rope.values.get(name)) or []
        below = [i for i, x in enumerate(values) if x < _FASTER]
        if below:
            means = f"pair {below[0]} turns faster than in training; the inverse of a divisor was meant, or 1"
            fix = {rope.at(name): [max(1.0, x) for x in values]}
            yield Fault(rope.at(name), f"{values[below[0]]:g} at {below[0]}", means, fix)


@kind("list-falls", "suspicious")
@each_rope("longrope")
def list_falls(subject: Subject, rope: Written) -> Iterator[Fault]:
    """Divisors that fall where they should grow from the fast pairs to the slow."""
    for name in _LISTS:
        values = _numbers(rope.values.get(name)) or []
        falls = [i for i, (x, top) in enumerate(zip(values, accumulate(values, max), strict=True)) if x < _FALLS * top]
        if falls and not any(x < _FASTER for x in values):
            means = "a slower pair needs no smaller divisor than a faster one: an entry is out of place"
            yield Fault(rope.at(name), f"{values[falls[0]]:g} at {falls[0]}", means, {rope.at(name): sorted(values)})


def _numbers(value: object) -> list[float] | None:
    if not isinstance(value, list) or not value:
        return None
    numbers = [x for x in map(number, value) if x is not None and x > 0]
    return numbers if len(numbers) == len(value) else None


def _published(subject: Subject, rope: Written, name: str) -> dict[Path, Any]:
    """The list that the makers of a model of that name publish."""
    published: PublishedModel | None = subject.published
    said = (published.config.get("rope_scaling") or {}).get(name) if published else None
    return {rope.at(name): said} if said else {}
