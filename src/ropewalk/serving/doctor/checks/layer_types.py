"""Faults of configurations that have one rope dict per layer type."""

from __future__ import annotations

from difflib import get_close_matches
from typing import Any

from ropewalk import config as configs
from ropewalk.serving.doctor.examined_config import ExaminedConfig, ExaminedRopeDict, KeyPath
from ropewalk.serving.doctor.fault_kinds import Answer, Fault, Faults, fault_kind, for_each_rope_dict
from ropewalk.serving.doctor.values import finite_number

# Keys of rope dicts in DeepSeek V4, which are not layer types.
_DEEPSEEK_V4_KEYS = {"main", "compress"}
_MISSPELLED_LAYER_TYPE_SIMILARITY = 0.85
# Layer types with a rotary embedding. Source: configuration_utils.py of transformers 5.
_ROTARY_LAYER_TYPES = {
    "full_attention", "sliding_attention", "chunked_attention", "window_attention", "indexed_attention",
    "compressed_sparse_attention", "heavily_compressed_attention", "minimax_m3_sparse", "hybrid", "hybrid_sliding",
    "reference_sliding_attention",
}  # fmt: skip


@fault_kind("layers-missing", "wrong")
def layers_missing(config: ExaminedConfig) -> Faults:
    """A layer type has no rope dict, but others have one."""
    configured, used = _configured_layer_types(config), _used_layer_types(config)
    if not configured or configured & _DEEPSEEK_V4_KEYS:
        return
    outer_path = config.rope_dicts[0].path[:-1]
    without_rope = {name for name, rope_dict in config.text[outer_path[-1]].items() if rope_dict is None}
    for layer_type in sorted(used - configured - without_rope):
        base = finite_number(config.text.get("rope_local_base_freq" if configs.is_local(layer_type) else "rope_theta"))
        path = (*outer_path, layer_type)
        fix: dict[KeyPath, Any] = {path: {"rope_type": "default", "rope_theta": base}} if base else {}
        misspelled = _find_misspelled(config, layer_type)
        if misspelled is not None:
            fix = {misspelled.path: None, path: dict(misspelled.values)}
        means = "transformers fails, because it needs the rope dict of every layer type"
        yield Fault(path, None, means, fix, f"With which base and which scaling were the {layer_type} layers trained?")


@fault_kind("layers-unknown", "suspicious")
def layers_unknown(config: ExaminedConfig) -> Faults:
    """A rope dict is for a layer type that no layer has and that transformers does not know."""
    used = _used_layer_types(config)
    known = used | _ROTARY_LAYER_TYPES | _DEEPSEEK_V4_KEYS | {configs.ALL_LAYERS}
    for rope_dict in config.rope_dicts:
        if used and rope_dict.layer_type not in known:
            means = f"no layer uses this rope dict: layer_types contains {', '.join(sorted(used))}"
            fix: dict[KeyPath, Any] = {rope_dict.path: None}
            for layer_type in sorted(used - _configured_layer_types(config)):
                if _find_misspelled(config, layer_type) == rope_dict:
                    fix[(*rope_dict.path[:-1], layer_type)] = dict(rope_dict.values)
            yield Fault(rope_dict.path, rope_dict.layer_type, means, fix)


@fault_kind("layers-local-scaled", "suspicious")
@for_each_rope_dict("linear", "dynamic", "yarn", "longrope", "llama3")
def layers_local_scaled(config: ExaminedConfig, rope_dict: ExaminedRopeDict) -> Faults:
    """Layers that attend only to a sliding window have a scaling."""
    if configs.is_local(rope_dict.layer_type):
        means = "distances within the window never exceed those of the training, so the scaling only costs resolution"
        question = "Were these layers trained with the scaling?"
        answers = (Answer("yes: leave it"), Answer("no, it was added for longer texts", rope_dict.fix_without_scaling))
        yield Fault(rope_dict.path_of("rope_type"), rope_dict.rope_type, means, question=question, answers=answers)


@fault_kind("layers-and-flat", "wrong")
def layers_and_flat(config: ExaminedConfig) -> Faults:
    """Options of a scaling are beside the rope dicts of the layer types, not in them."""
    if not _configured_layer_types(config):
        return
    outer_path = config.rope_dicts[0].path[:-1]
    for key, value in config.text[outer_path[-1]].items():
        if key in configs.SCALING_KEYS and value is not None:
            path, main = (*outer_path, key), config.main_rope_dict or config.rope_dicts[0]
            if key == "truncate" and main.values.get(key) is value:
                continue  # transformers 5 reads this option here: layers-truncate
            means = "the option is ignored: only the dicts of the layer types are read"
            is_written_there = all(rope_dict.values.get(key) == value for rope_dict in config.rope_dicts)
            answers = (
                Answer(f"{main.layer_type}", {path: None, main.path_of(key): value}),
                Answer("none", {path: None}),
            )
            fix = {path: None} if is_written_there else {}
            yield Fault(path, value, means, fix, "For which layer type is it meant?", answers)


@fault_kind("layers-truncate", "suspicious")
@for_each_rope_dict("yarn")
def layers_truncate(config: ExaminedConfig, rope_dict: ExaminedRopeDict) -> Faults:
    """`truncate` is in the rope dict of a layer type, where transformers does not read it."""
    if rope_dict.layer_type == configs.ALL_LAYERS or rope_dict.values.get("truncate") is not False:
        return
    path, outer_path = rope_dict.path_of("truncate"), (*rope_dict.path[:-1], "truncate")
    if config.text[outer_path[-2]].get("truncate") is False:
        return
    means = "transformers 5 looks for truncate in the outer dict, so it rounds the ramp to whole pairs all the same"
    actual = config.with_changes({path: True}).interpretation
    yield Fault(path, False, means, {outer_path: False}, actual=actual, expected=config.interpretation)


def _configured_layer_types(config: ExaminedConfig) -> set[str]:
    """Return the layer types that have a rope dict; empty if there is one rope dict for all layers."""
    return {rope_dict.layer_type for rope_dict in config.rope_dicts} - {configs.ALL_LAYERS}


def _used_layer_types(config: ExaminedConfig) -> set[str]:
    """Return the layer types in `layer_types` that have a rotary embedding."""
    layer_types = config.text.get("layer_types")
    if not isinstance(layer_types, list):
        return set()
    names = {name for name in layer_types if isinstance(name, str)}
    return {name for name in names if name.endswith("_attention") and "linear" not in name}


def _find_misspelled(config: ExaminedConfig, layer_type: str) -> ExaminedRopeDict | None:
    """Return the rope dict under a name that no layer has and that resembles this layer type, or None."""
    used = _used_layer_types(config)
    unused = {each.layer_type: each for each in config.rope_dicts if each.layer_type not in used | _ROTARY_LAYER_TYPES}
    similar = get_close_matches(layer_type, unused, n=1, cutoff=_MISSPELLED_LAYER_TYPE_SIMILARITY)
    return unused[similar[0]] if similar else None
