"""Describe in English what a scaling does to a model's rotary embedding, and a position method to its distances."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from ropewalk.config import locate
from ropewalk.errors import InputError
from ropewalk.frequencies import Frequencies
from ropewalk.positions import PositionMethod, parse
from ropewalk.rope import Rope
from ropewalk.scaling import Scaling
from ropewalk.scaling.policies import parse_policy
from ropewalk.spec import non_default_options

_TOLERANCE = 1e-6  # relative difference below which two numbers count as equal
_UNSCALED = "all frequencies are unchanged"


def load_rope(model: str) -> Rope | None:
    """Return the unscaled rotary embedding of a model, or None if its configuration is not on this machine.

    The network is never used: a report of finished results must not depend on it.
    """
    try:
        from huggingface_hub import try_to_load_from_cache

        from ropewalk.models.load import load_config

        path = model if locate(model) is not None else try_to_load_from_cache(model, "config.json")
        if not isinstance(path, str):
            return None
        model_config = load_config(path)
    except (ImportError, OSError, ValueError):
        return None
    return model_config.main_layer.rope


def describe_scaling(spec: str, policy: str | None, rope: Rope | None, lengths: Sequence[int]) -> str:
    """Return one or two sentences on a scaling or a position method.

    Args:
        spec: the scaling or position method, as in "yarn:factor=4".
        policy: the policy of a dynamic scaling.
        rope: the model's unscaled rotary embedding; if None, only the formula is given.
        lengths: tokens of the texts that were read with it.
    """
    try:
        scaling = parse(spec)
    except InputError as error:  # the file of a learned scaling has moved or changed
        return f"The scaling can no longer be read ({error})."
    name = type(scaling).__name__
    if rope is None or (scaling.original_length or rope.original_length) is None:
        return f"{name}: {scaling.formula}. The model's configuration could not be read, so there are no numbers."
    if isinstance(scaling, PositionMethod):
        return f"{name}: {_describe_positions(scaling, rope, max(lengths))}."
    factor = getattr(scaling, "factor", None)
    title = name if factor is None else f"{name} with factor {factor:g}"
    if scaling.is_dynamic:
        return f"{title}: {_describe_dynamic(scaling, policy, rope, max(lengths))}."
    original_length = scaling.resolve_original_length(rope)
    extension_factor = scaling.extension_factor(rope)
    if scaling.is_per_layer:
        rotation = f"each of {len(scaling.layer_frequencies(rope))} layers has frequencies of its own"
    else:
        rotation = _describe_rotation(rope, scaling.frequencies(rope))
    if extension_factor <= 1:
        return f"{title}: {rotation}. The model was trained on {original_length:,} tokens."
    times = "twice" if extension_factor == 2 else f"{extension_factor:g} times"
    target = f"{original_length * extension_factor:,.0f} tokens"
    return (
        f"{title}: for texts of up to {target}, {times} the {original_length:,} tokens of training. "
        f"{rotation[0].upper()}{rotation[1:]}."
    )


def _describe_positions(method: PositionMethod, rope: Rope, length: int) -> str:
    """Return how a position method reads a text up to the original length, and the last of `length` tokens."""
    original_length = method.resolve_original_length(rope)
    description = f"texts of up to {original_length:,} tokens are unchanged"
    if length <= original_length:
        return description
    resolved = method.resolve(original_length, length)
    near = length - 1 - int(resolved.near_start(np.asarray(length - 1)))
    options = {key: value for key, value in non_default_options(resolved).items() if key != "original_length"}
    shown = ", ".join(
        f"{key} {value:,}" if isinstance(value, int) else f"{key} {value}" for key, value in options.items()
    )
    return f"{description}; the last of {length:,} sees the {near:,} before it as in training, others nearer ({shown})"


def _describe_rotation(rope: Rope, scaled: Frequencies) -> str:
    """Return how many pairs of channels rotate as before and how many slower or faster, and the factors besides 1."""
    with np.errstate(divide="ignore"):
        slowdown = rope.inv_freq / scaled.inv_freq
    parts = [_describe_slowdown(slowdown)]
    if abs(scaled.attention_factor - 1) > _TOLERANCE:
        parts.append(f"attention factor {scaled.attention_factor:.4g}")
    if abs(scaled.softmax_factor - 1) > _TOLERANCE:
        parts.append(f"softmax factor {scaled.softmax_factor:.4g}")
    return "; ".join(parts)


def _describe_dynamic(scaling: Scaling, policy: str | None, rope: Rope, length: int) -> str:
    """Return how a dynamic scaling reads a text up to the original length, and at `length` tokens."""
    original_length = scaling.resolve_original_length(rope)
    within = _describe_rotation(rope, scaling.frequencies(rope, original_length))
    if within == _UNSCALED:
        within = "unscaled"
    description = f"depends on the length of the text; up to {original_length:,} tokens {within}"
    if length <= original_length or policy is None:
        return description
    scaled_length = parse_policy(policy).scaled_length(length, original_length)
    past = _describe_rotation(rope, scaling.frequencies(rope, scaled_length))
    return f"{description}; at {length:,} tokens scaled for {scaled_length:,} (policy {policy}): {past}"


def _describe_slowdown(slowdown: NDArray[np.float64]) -> str:
    """`slowdown`: unscaled over scaled frequency of each pair, [dim/2], fastest pair first; infinite if it stops."""
    pairs = len(slowdown)
    is_unchanged = np.abs(slowdown - 1) < _TOLERANCE
    if is_unchanged.all():
        return _UNSCALED
    largest = slowdown[np.argmax(np.where(is_unchanged, 0.0, np.abs(np.log(slowdown))))]
    is_largest = ~is_unchanged & np.isclose(slowdown, largest, rtol=_TOLERANCE)
    if is_largest.all():
        return f"all {pairs} pairs {_describe_change(largest, pairs)}"
    unchanged, most = int(is_unchanged.sum()), int(is_largest.sum())
    between = pairs - unchanged - most
    parts = []
    if unchanged:
        which = _name_pairs(unchanged, "fastest", bool(is_unchanged[:unchanged].all()))
        parts.append(f"{which} {_plural(unchanged, 'rotates', 'rotate')} as before")
    which = _name_pairs(most, "slowest", bool(is_largest[-most:].all()))
    parts.append(f"{which} {_describe_change(largest, most)}")
    if between:
        parts.append(f"{between} {_plural(between, 'is', 'are')} in between")
    return f"of {pairs} pairs " + ", ".join(parts)


def _name_pairs(count: int, name: str, is_contiguous: bool) -> str:
    """Return `the 12 fastest` or `the slowest` for pairs at one end of the spectrum, else their number alone."""
    if not is_contiguous:
        return str(count)
    return f"the {name}" if count == 1 else f"the {count} {name}"


def _describe_change(slowdown: float, count: int) -> str:
    if np.isinf(slowdown):
        return _plural(count, "does not rotate", "do not rotate")
    direction = "slower" if slowdown > 1 else "faster"
    return f"{_plural(count, 'rotates', 'rotate')} {max(slowdown, 1 / slowdown):.3g} times {direction}"


def _plural(count: int, singular: str, plural: str) -> str:
    return singular if count == 1 else plural
