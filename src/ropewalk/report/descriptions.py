"""What a scaling does to a model's rotary embedding, in words, from its numbers."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from ropewalk.config import locate
from ropewalk.frequencies import Frequencies
from ropewalk.rope import Rope
from ropewalk.scaling import Scaling, parse
from ropewalk.scaling.policies import parse_policy

_SAME = 1e-6  # relative: how far numbers may be from each other that read as one
_UNSCALED = "every pair turns as it was trained"


def rope_of(model: str) -> Rope | None:
    """The unscaled rotary embedding of a model that `load` takes, None where this machine has it no more.

    No network is asked: a report of what was measured must not wait for it.
    """
    try:
        from huggingface_hub import try_to_load_from_cache

        from ropewalk.models.load import load_config

        kept = model if locate(model) is not None else try_to_load_from_cache(model, "config.json")
        if not isinstance(kept, str):
            return None
        model_config = load_config(kept)
    except (ImportError, OSError, ValueError):
        return None
    return model_config.ropes[model_config.main].rope


def in_words(spec: str, policy: str | None, rope: Rope | None, lengths: Sequence[int]) -> str:
    """One or two sentences on a scaling, as it was used at these lengths; without a rope, what its formula is."""
    scaling = parse(spec)
    name = type(scaling).__name__
    if rope is None or (scaling.original_length or rope.original_length) is None:
        return f"{name}: {scaling.formula}. The model's configuration could not be read, so there are no numbers."
    factor = getattr(scaling, "factor", None)
    shown = name if factor is None else f"{name} with factor {factor:g}"
    if scaling.is_dynamic:
        return f"{shown}: {_following(scaling, policy, rope, max(lengths))}."
    extension_factor, original = scaling.extension_factor(rope), scaling.resolve_original_length(rope)
    told = turning(rope, scaling.frequencies(rope))
    if extension_factor <= 1:
        return f"{shown}: {told}. The model was trained on {original:,} tokens."
    reached = f"{original * extension_factor:,.0f} tokens"
    made = f"made for {reached}, {_times(extension_factor)} the {original:,} it was trained on"
    return f"{shown}: {made}. {told[0].upper()}{told[1:]}."


def _following(scaling: Scaling, policy: str | None, rope: Rope, length: int) -> str:
    """How a dynamic scaling follows the text as far as `length`."""
    original = scaling.resolve_original_length(rope)
    within = turning(rope, scaling.frequencies(rope, original))
    within = "unscaled" if within == _UNSCALED else within
    start = f"follows the length of the text; up to {original:,} tokens {within}"
    if length <= original or policy is None:
        return start
    made_for = parse_policy(policy).scaled_for(length, original)
    past = turning(rope, scaling.frequencies(rope, made_for))
    return f"{start}; at {length:,} tokens made for {made_for:,} (policy {policy}): {past}"


def turning(rope: Rope, scaled: Frequencies) -> str:
    """How many pairs turn as before, how many slower or faster and by how much; the factors that are not 1."""
    factors = "".join(
        f"; {name} {value:.4g}"
        for name, value in (("attention factor", scaled.attention_factor), ("softmax factor", scaled.softmax_factor))
        if abs(value - 1) > _SAME
    )
    with np.errstate(divide="ignore"):
        slower = rope.inv_freq / scaled.inv_freq
    return _pairs(slower) + factors


def _pairs(slower: NDArray[np.float64]) -> str:
    """`slower`: how many times slower each pair turns, fastest pair first, [dim/2]; infinite where it stands."""
    pairs = len(slower)
    kept = np.abs(slower - 1) < _SAME
    most = slower[np.argmax(np.where(kept, 0.0, np.abs(np.log(slower))))]
    last = ~kept & (np.isclose(slower, most, rtol=_SAME))
    if kept.all():
        return _UNSCALED
    if last.all():
        return f"all {pairs} pairs {_turn(most, pairs)}"
    rest = int((~kept & ~last).sum())
    parts = [
        f"{_which(kept, 'fastest')} {_verb(kept.sum())} as before" if kept.any() else "",
        f"{_which(last, 'slowest')} {_turn(most, int(last.sum()))}",
        f"{rest} {'lies' if rest == 1 else 'lie'} between" if rest else "",
    ]
    return f"of {pairs} pairs " + ", ".join(part for part in parts if part)


def _which(chosen: NDArray[np.bool_], name: str) -> str:
    """`the 12 fastest` for the first twelve, `the slowest` for the last one, the number alone for any others."""
    count = int(chosen.sum())
    if not (chosen[:count] if name == "fastest" else chosen[-count:]).all():
        return str(count)
    return f"the {name}" if count == 1 else f"the {count} {name}"


def _verb(count: int) -> str:
    return "turns" if count == 1 else "turn"


def _turn(slower: float, count: int) -> str:
    if np.isinf(slower):
        return "does not turn" if count == 1 else "do not turn"
    return f"{_verb(count)} {max(slower, 1 / slower):.3g} times {'slower' if slower > 1 else 'faster'}"


def _times(factor: float) -> str:
    return {2.0: "twice"}.get(factor, f"{factor:g} times")
