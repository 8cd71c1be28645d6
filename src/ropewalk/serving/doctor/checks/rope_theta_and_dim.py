"""The base, `rope_theta`, and the number of rotary dimensions: missing, given twice, or impossible."""

from __future__ import annotations

from typing import Any

from ropewalk import config as configs
from ropewalk.config.architectures import DEFAULT_ROPE_THETA
from ropewalk.rope import RotaryDimError
from ropewalk.serving.doctor.examined_config import ExaminedConfig, Path, RopeDict
from ropewalk.serving.doctor.fault_kinds import Fault, Faults, fault_kind, for_each_rope_dict
from ropewalk.serving.doctor.values import finite_number

_BASE_FIELDS = ("rope_theta", "rotary_emb_base", "rope_base", "global_rope_theta")
_USUAL_BASE = 10_000.0  # what engines use if the configuration has no base
_PARTIAL = "partial_rotary_factor"
_DIM_FIELDS = ("qk_rope_head_dim", "rotary_dim", "head_dim")
_HEAD_FIELDS = ("head_dim", "qk_rope_head_dim", "kv_channels")


@fault_kind("base-twice", "wrong")
@for_each_rope_dict()
def base_twice(config: ExaminedConfig, rope_dict: RopeDict) -> Faults:
    """There are two different bases: in the rope dict and beside it."""
    outside = finite_number(config.text.get("rope_theta"))
    inside = finite_number(rope_dict.values.get("rope_theta"))
    if rope_dict.layer_type == configs.ALL_LAYERS and outside and inside and outside != inside:
        path = config.path_of("rope_theta")
        means = f"transformers 5 uses {inside:g}, from the dict; readers of transformers 4's fields use {outside:g}"
        actual = config.with_changes({rope_dict.path_of("rope_theta"): outside}).interpretation
        yield Fault(path, outside, means, {path: inside}, actual)


@fault_kind("base-missing", "suspicious")
def base_missing(config: ExaminedConfig) -> Faults:
    """There is no rope_theta, and the default of the architecture is unknown or not the 10,000 that engines use."""
    has_base = any(config.text.get(name) is not None for name in _BASE_FIELDS)
    has_base = has_base or any(rope_dict.values.get("rope_theta") is not None for rope_dict in config.rope_dicts)
    if has_base or not config.rope_dicts or config.model_config is None:
        return
    path = config.path_of("rope_theta")
    default = config.model_config.main_layer.rope.base
    fix: dict[Path, Any] = {}
    is_default_known = config.engine_config is not config.config or config.model_type in DEFAULT_ROPE_THETA
    if is_default_known:
        if default == _USUAL_BASE:
            return
        means = f"engines that do not know the default of this architecture, {default:g}, use 10,000"
        fix = {path: default}
    elif any(rope_dict.values for rope_dict in config.rope_dicts):
        means = "the default of this architecture is unknown; engines use 10,000, which only its authors can confirm"
    else:
        return
    actual = config.with_changes({path: _USUAL_BASE}).interpretation
    yield Fault(path, None, means, fix, actual)


@fault_kind("base-impossible", "wrong")
def base_impossible(config: ExaminedConfig) -> Faults:
    """A rope_theta is 1 or less."""
    for path, value in config.find_values("rope_theta"):
        base = finite_number(value)
        if base is not None and base <= 1:
            fix = {}
            if config.published_model is not None:
                fix[path] = config.published_model.model_config.main_layer.rope.base
            yield Fault(path, value, "no pair would rotate slower than the first one", fix)


@fault_kind("partial-twice", "wrong")
@for_each_rope_dict()
def partial_twice(config: ExaminedConfig, rope_dict: RopeDict) -> Faults:
    """There are two different partial_rotary_factors: in the rope dict and beside it."""
    outside, inside = finite_number(config.text.get(_PARTIAL)), finite_number(rope_dict.values.get(_PARTIAL))
    if rope_dict.layer_type == configs.ALL_LAYERS and outside and inside and outside != inside:
        path = config.path_of(_PARTIAL)
        means = f"transformers 5 rotates {inside:g} of each head, readers of the older field {outside:g}"
        yield Fault(path, outside, means, {path: inside})


@fault_kind("partial-impossible", "wrong")
def partial_impossible(config: ExaminedConfig) -> Faults:
    """A partial_rotary_factor is not above 0 and at most 1."""
    for path, value in config.find_values(_PARTIAL):
        fraction = finite_number(value)
        if fraction is not None and not 0 < fraction <= 1:
            likely = fraction / 100 if 1 < fraction <= 100 else 1.0  # a percentage
            yield Fault(path, value, "it is the fraction of each head that is rotated", {path: likely})


@fault_kind("proportional-whole", "suspicious")
@for_each_rope_dict("proportional")
def proportional_whole(config: ExaminedConfig, rope_dict: RopeDict) -> Faults:
    """Proportional has no partial_rotary_factor, so all pairs are rotated."""
    if rope_dict.values.get(_PARTIAL) is None and config.text.get(_PARTIAL) is None:
        means = "the default is 1, which is the same as the type default; Gemma 4 writes 0.25"
        yield Fault(rope_dict.path_of(_PARTIAL), None, means, {rope_dict.path_of("rope_type"): "default"})


@fault_kind("dim-odd", "wrong")
def dim_odd(config: ExaminedConfig) -> Faults:
    """The number of rotary dimensions is odd, so they cannot be paired."""
    if not isinstance(config.interpretation, RotaryDimError) or _rounded_head_dim(config):
        return
    name = next((name for name in _DIM_FIELDS if config.text.get(name)), None)
    value = config.text.get(name or "")
    fix = {}
    if name and isinstance(value, int) and value > 2 and value % 2:
        fix = {config.path_of(name): value - 1}
    yield Fault(config.path_of(name or "hidden_size"), value, str(config.interpretation), fix)


@fault_kind("head-dim-broken", "suspicious")
def head_dim_broken(config: ExaminedConfig) -> Faults:
    """`hidden_size` is not divisible by the number of heads, and there is no head_dim."""
    head_dim = _rounded_head_dim(config)
    if head_dim is None:
        return
    path = config.path_of("head_dim")
    quotient = f"{config.text['hidden_size']:,} / {config.text['num_attention_heads']} heads"
    if config.model_config is None:
        means = f"{quotient} is rounded down to {head_dim}, which cannot be paired; only its authors know head_dim"
        yield Fault(path, None, means)
    else:
        means = f"{quotient} is rounded down to {head_dim}; some engines round differently"
        yield Fault(path, None, means, {path: head_dim})


def _rounded_head_dim(config: ExaminedConfig) -> int | None:
    """Return hidden_size / number of heads, rounded down, if it is not whole and no field has the size of a head."""
    hidden_size, num_heads = config.text.get("hidden_size"), config.text.get("num_attention_heads")
    if any(config.text.get(name) for name in _HEAD_FIELDS):
        return None
    if not isinstance(hidden_size, int) or not isinstance(num_heads, int):
        return None
    return hidden_size // num_heads if 0 < num_heads < hidden_size and hidden_size % num_heads else None
