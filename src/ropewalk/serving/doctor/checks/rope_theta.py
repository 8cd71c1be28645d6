"""The base, `rope_theta`: missing, given twice, or impossible."""

from __future__ import annotations

from typing import Any

from ropewalk import config as configs
from ropewalk.config.architectures import DEFAULT_ROPE_THETA
from ropewalk.serving.doctor.examined_config import ExaminedConfig, Path, RopeDict
from ropewalk.serving.doctor.fault_kinds import Fault, Faults, fault_kind, for_each_rope_dict
from ropewalk.serving.doctor.values import finite_number

_NAMES = ("rope_theta", "rotary_emb_base", "rope_base", "global_rope_theta")
_USUAL_BASE = 10_000.0  # what engines use if the configuration has no base


@fault_kind("base-twice", "wrong")
@for_each_rope_dict()
def base_twice(config: ExaminedConfig, rope_dict: RopeDict) -> Faults:
    """There are two different bases: in the rope dict and beside it."""
    outside = finite_number(config.text.get("rope_theta"))
    inside = finite_number(rope_dict.values.get("rope_theta"))
    if rope_dict.layer_type == configs.ALL_LAYERS and outside and inside and outside != inside:
        path = config.path_of("rope_theta")
        means = (
            f"transformers 5 uses {inside:g}, from the dict; readers of the fields of transformers 4 use {outside:g}"
        )
        actual = config.with_changes({rope_dict.path_of("rope_theta"): outside}).interpretation
        yield Fault(path, outside, means, {path: inside}, actual)


@fault_kind("base-missing", "suspicious")
def base_missing(config: ExaminedConfig) -> Faults:
    """There is no rope_theta, and the default of the architecture is unknown or not the 10,000 that engines use."""
    has_base = any(config.text.get(name) is not None for name in _NAMES)
    has_base = has_base or any(rope_dict.values.get("rope_theta") is not None for rope_dict in config.rope_dicts)
    if has_base or not config.rope_dicts or config.model_config is None:
        return
    path = config.path_of("rope_theta")
    default = config.model_config.main_layer.rope.base
    fix: dict[Path, Any] = {}
    is_default_known = config.with_defaults is not config.config or config.model_type in DEFAULT_ROPE_THETA
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
