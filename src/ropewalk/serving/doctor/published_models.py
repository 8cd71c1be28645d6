"""A configuration against what the makers of a model of that name publish."""

from __future__ import annotations

from collections.abc import Iterator

from ropewalk.errors import InputError
from ropewalk.serving.doctor.base import Fault, Subject, kind


@kind("differs-from-published", "suspicious")
def differs_from_published(subject: Subject) -> Iterator[Fault]:
    """A known model by its name, with another base, size of head or scaling."""
    model, model_config = subject.published, subject.model_config
    if model is None or isinstance(model_config, InputError) or subject.as_published:
        return
    own = next(model.readings)
    layer = model_config.ropes[model_config.main]
    theirs = own.ropes[own.main]
    text = Subject(model.config).text
    if (layer.rope.base, layer.rope.dim) != (theirs.rope.base, theirs.rope.dim):
        means = f"{model.model} is published with base {theirs.rope.base:g} and {theirs.rope.dim} rotary dimensions"
        found = f"base {layer.rope.base:g}, {layer.rope.dim} rotary dimensions"
        fix = {subject.at(name): text[name] for name in _SHAPE if text.get(name) not in (None, subject.text.get(name))}
        yield Fault(subject.at("rope_theta"), found, means, fix, expected=own)
    elif str(theirs.scaling) != "none" and layer.scaling != theirs.scaling:
        name = subject.ropes[0].path[len(subject.part)]
        said = text.get("rope_parameters") or text.get("rope_scaling")
        means = f"{model.model} is published with {str(theirs.scaling)[:60]}: {model.source}"
        yield Fault(subject.at(name), str(layer.scaling)[:60], means, {subject.at(name): said}, expected=own)


_SHAPE = ("rope_theta", "head_dim", "hidden_size", "num_attention_heads", "partial_rotary_factor", "rotary_dim")
