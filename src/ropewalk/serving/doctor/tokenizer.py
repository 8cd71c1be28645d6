"""The tokenizer's own limit, by which some engines cut a text."""

from __future__ import annotations

from collections.abc import Iterator

from ropewalk.errors import InputError
from ropewalk.serving.doctor.base import TOKENIZER, Fault, Subject, kind

_FIELD = (TOKENIZER, "model_max_length")


@kind("tokenizer-limit", "suspicious")
def tokenizer_limit(subject: Subject) -> Iterator[Fault]:
    """The tokenizer's model_max_length below what is read, or below the target."""
    limit, model_config = (subject.tokenizer or {}).get("model_max_length"), subject.model_config
    if isinstance(limit, bool) or not isinstance(limit, int | float) or isinstance(model_config, InputError):
        return
    layer = model_config.ropes[model_config.main]
    needed = subject.target or model_config.max_length or 0
    if str(layer.scaling) != "none" and layer.rope.original_length and not subject.target:
        needed = max(needed, round(layer.rope.original_length * layer.scaling.extension_factor(layer.rope)))
    if 0 < limit < needed:
        means = "tokenizers warn past it, and some engines take the lesser of both limits"
        yield Fault(_FIELD, limit, means, {_FIELD: needed})


@kind("tokenizer-not-a-number", "wrong")
def tokenizer_not_a_number(subject: Subject) -> Iterator[Fault]:
    """A model_max_length of the tokenizer that is no number above 0."""
    limit, model_config = (subject.tokenizer or {}).get("model_max_length"), subject.model_config
    if limit is None or (isinstance(limit, int | float) and not isinstance(limit, bool) and limit > 0):
        return
    length = None if isinstance(model_config, InputError) else model_config.max_length
    yield Fault(_FIELD, limit, "readers compare lengths with it", {_FIELD: subject.target or length})
