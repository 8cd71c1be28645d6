"""Rope dicts for each layer type."""

from __future__ import annotations

from collections.abc import Iterator

from ropewalk import config as configs
from ropewalk.config.transformers import OF_A_SCALING
from ropewalk.doctor.base import Fault, Subject, Written, each_rope, kind, number

_OWN_NAMES = {"main", "compress"}  # DeepSeek V4's, which are no layer types


@kind("layers-missing", "wrong")
def layers_missing(subject: Subject) -> Iterator[Fault]:
    """A layer type without a rope dict, where the others have one."""
    given, used = _given(subject), _used(subject)
    if not given or given & _OWN_NAMES:
        return
    for layers in sorted(used - given):
        first = subject.ropes[0]
        local = subject.text.get("rope_local_base_freq") if configs.is_local(layers) else None
        base = number(local) or number(first.values.get("rope_theta")) or 10_000.0
        path = (*first.path[:-1], layers)
        means = "transformers looks its layer type up in the dict and fails"
        yield Fault(path, None, means, {path: {"rope_type": "default", "rope_theta": base}})


@kind("layers-unknown", "suspicious")
def layers_unknown(subject: Subject) -> Iterator[Fault]:
    """A rope dict for a layer type that no layer has."""
    used = _used(subject)
    for rope in subject.ropes:
        if used and rope.layers not in used | _OWN_NAMES | {configs.ALL_LAYERS}:
            means = f"layer_types names {', '.join(sorted(used))}"
            yield Fault(rope.path, rope.layers, means, {rope.path: None})


@kind("layers-local-scaled", "suspicious")
@each_rope("linear", "dynamic", "yarn", "longrope", "llama3")
def layers_local_scaled(subject: Subject, rope: Written) -> Iterator[Fault]:
    """A scaling on layers that see only a window."""
    if not configs.is_local(rope.layers):
        return
    own = {key: value for key, value in rope.values.items() if key not in OF_A_SCALING - {"rope_theta"}}
    own.pop("original_max_position_embeddings", None)
    means = "their window never leaves the training: the scaling only blurs what they see"
    yield Fault(rope.at("rope_type"), rope.said, means, {rope.path: {**own, "rope_type": "default"}})


@kind("layers-and-flat", "wrong")
def layers_and_flat(subject: Subject) -> Iterator[Fault]:
    """Options of a scaling beside the rope dicts of the layer types."""
    if not _given(subject):
        return
    path = subject.ropes[0].path[:-1]
    said = subject.text[path[-1]]
    flat = [key for key in said if key in OF_A_SCALING and said[key] is not None]
    for key in flat:
        means = "readers look only into the dicts of the layer types"
        yield Fault((*path, key), said[key], means, {(*path, key): None})


@kind("layers-truncate", "suspicious")
@each_rope("yarn")
def layers_truncate(subject: Subject, rope: Written) -> Iterator[Fault]:
    """`truncate` in the rope dict of a layer type, where transformers does not look."""
    if rope.layers == configs.ALL_LAYERS or rope.values.get("truncate") is not False:
        return
    means = "transformers 5 asks the outer dict for it, and cuts the ramp to whole pairs all the same"
    actual = subject.with_({rope.at("truncate"): True}).described
    yield Fault(rope.at("truncate"), False, means, {rope.at("truncate"): None}, actual, subject.described)


def _given(subject: Subject) -> set[str]:
    """The layer types that have a rope dict; none where one dict is for all."""
    return {rope.layers for rope in subject.ropes} - {configs.ALL_LAYERS}


def _used(subject: Subject) -> set[str]:
    """The layer types that layers have, but for those that do not turn."""
    kinds = subject.text.get("layer_types")
    named = {each for each in kinds if isinstance(each, str)} if isinstance(kinds, list) else set()
    return {each for each in named if each.endswith("_attention") and "linear" not in each}
