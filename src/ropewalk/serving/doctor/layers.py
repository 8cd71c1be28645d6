"""Rope dicts for each layer type."""

from __future__ import annotations

from collections.abc import Iterator

from ropewalk import config as configs
from ropewalk.config.transformers import OF_A_SCALING
from ropewalk.serving.doctor.base import Fault, Subject, Written, each_rope, kind, number

_OWN_NAMES = {"main", "compress"}  # DeepSeek V4's, which are no layer types
_TYPES = {  # what transformers calls layers that turn
    "full_attention", "sliding_attention", "chunked_attention", "window_attention", "indexed_attention",
    "compressed_sparse_attention", "heavily_compressed_attention", "minimax_m3_sparse", "hybrid", "hybrid_sliding",
    "reference_sliding_attention",
}  # fmt: skip


@kind("layers-missing", "wrong")
def layers_missing(subject: Subject) -> Iterator[Fault]:
    """A layer type without a rope dict, where the others have one."""
    given, used = _given(subject), _used(subject)
    if not given or given & _OWN_NAMES:
        return
    outer = subject.ropes[0].path[:-1]
    still = {name for name, said in subject.text[outer[-1]].items() if said is None}  # so written, they do not turn
    for layers in sorted(used - given - still):
        base = number(subject.text.get("rope_local_base_freq" if configs.is_local(layers) else "rope_theta"))
        path = (*outer, layers)
        means = "transformers looks its layer type up in the dict and fails"
        yield Fault(path, None, means, {path: {"rope_type": "default", "rope_theta": base}} if base else {})


@kind("layers-unknown", "suspicious")
def layers_unknown(subject: Subject) -> Iterator[Fault]:
    """A rope dict for a layer type that no layer has, by a name that transformers does not know."""
    used = _used(subject)
    for rope in subject.ropes:
        if used and rope.layers not in used | _TYPES | _OWN_NAMES | {configs.ALL_LAYERS}:
            means = f"layer_types names {', '.join(sorted(used))}"
            yield Fault(rope.path, rope.layers, means, {rope.path: None})


@kind("layers-local-scaled", "suspicious")
@each_rope("linear", "dynamic", "yarn", "longrope", "llama3")
def layers_local_scaled(subject: Subject, rope: Written) -> Iterator[Fault]:
    """A scaling on layers that see only a window."""
    if not configs.is_local(rope.layers):
        return
    means = "their window never leaves the training: the scaling only blurs what they see"
    yield Fault(rope.at("rope_type"), rope.said, means, rope.unscaled)


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
    actual = subject.with_({rope.at("truncate"): True}).model_config
    yield Fault(rope.at("truncate"), False, means, {rope.at("truncate"): None}, actual, subject.model_config)


def _given(subject: Subject) -> set[str]:
    """The layer types that have a rope dict; none where one dict is for all."""
    return {rope.layers for rope in subject.ropes} - {configs.ALL_LAYERS}


def _used(subject: Subject) -> set[str]:
    """The layer types that layers have, but for those that do not turn."""
    kinds = subject.text.get("layer_types")
    named = {each for each in kinds if isinstance(each, str)} if isinstance(kinds, list) else set()
    return {each for each in named if each.endswith("_attention") and "linear" not in each}
