"""Put a scaling on a transformers model, in place, and take it off again."""

from __future__ import annotations

import copy
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, TypeVar

import numpy as np
from torch import nn

from ropewalk import config as configs
from ropewalk.errors import InputError
from ropewalk.frequencies import Frequencies
from ropewalk.models.rotary import RotaryModule, RotaryTable, rotary_modules
from ropewalk.plan import plan
from ropewalk.rope import Rope
from ropewalk.scaling import Scaling, parse

Model = TypeVar("Model", bound=nn.Module)
ScalingLike = Scaling | str | Mapping[str, Any]
_KEPT_FIELDS = ("rope_parameters", "max_position_embeddings", "original_max_position_embeddings")


@dataclass
class Extension:
    """What `extend` did to a model, and what it needs to undo it; kept on the model."""

    scalings: dict[str, Scaling]
    length: int | None
    classes: list[tuple[RotaryModule, type]] = field(default_factory=list)
    softmax_scales: list[tuple[Any, float]] = field(default_factory=list)
    config_fields: dict[str, Any] = field(default_factory=dict)


def extend(
    model: Model,
    scaling: ScalingLike | Mapping[str, ScalingLike] | None = None,
    *,
    target: int | None = None,
    length: int | None = None,
) -> Model:
    """Give the model's rotary embeddings the frequencies of `scaling`, in place; weights and attention stay.

    Args:
        model: any transformers model with rotary embeddings.
        scaling: a scaling, its spec or dict; or a dict of layer type to scaling. A single one goes to the layers
            that see the whole text: sliding-window layers, which never pass their training, keep their own.
        target: instead of a scaling, the length in tokens to plan one for (`ropewalk.plan`).
        length: fixes a dynamic scaling at the frequencies of that length, in tokens.

    Returns the same model. `model.config` says what is true afterwards; where transformers cannot express the
    scaling, a warning says so. A scaling put on an extended model replaces the earlier one.
    Raises InputError for a model without rotary embeddings, or one whose tables cannot be reproduced.
    """
    if (scaling is None) == (target is None):
        raise InputError("scaling", scaling, "either a scaling or a target, one of the two")
    before = extension_of(model)
    restore(model)
    try:
        return _extend(model, scaling, target, length)
    except InputError:
        if before is not None:
            _extend(model, before.scalings, None, before.length)
        raise


def restore(model: Model) -> Model:
    """Take the scaling off again: the very same logits as before `extend`. Does nothing to any other model."""
    extension = extension_of(model)
    if extension is None:
        return model
    for rotary, original in extension.classes:
        rotary.uninstall(original)
    for attention, scale in extension.softmax_scales:
        attention.scaling = scale
    text_config = configs.text_config(_config_of(model))
    for name, value in extension.config_fields.items():
        setattr(text_config, name, value)
    del model._ropewalk_extension
    return model


def extension_of(model: nn.Module) -> Extension | None:
    """What `extend` did to the model; None for a model as it came."""
    return getattr(model, "_ropewalk_extension", None)


@contextmanager
def extended(model: nn.Module, scaling: ScalingLike | Mapping[str, ScalingLike], length: int | None) -> Iterator[None]:
    """`extend` for the length of a block; afterwards the model is as it was, extended or not."""
    before = extension_of(model)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # nothing is saved inside the block
        extend(model, scaling, length=length)
    try:
        yield
    finally:
        restore(model)
        if before is not None:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                extend(model, before.scalings, length=before.length)


def _extend(
    model: Model, scaling: ScalingLike | Mapping[str, ScalingLike] | None, target: int | None, length: int | None
) -> Model:
    text_config = configs.text_config(_config_of(model))
    modules = rotary_modules(model, text_config)
    described = configs.read(text_config)
    if scaling is None:
        scaling = plan(described, target=target or 0).scaling
    extension = Extension(_by_layer_type(scaling, described), length)
    tables = [_tables(rotary, described, extension) for rotary in modules]  # all that can fail, before any change
    extension.softmax_scales = _scale_softmax(model, text_config, described, extension)
    extension.classes = [(rotary, rotary.install(t)) for rotary, t in zip(modules, tables, strict=True)]
    extension.config_fields = _describe(text_config, described, extension)
    model._ropewalk_extension = extension  # type: ignore[assignment]
    return model


def _config_of(model: nn.Module) -> Any:
    config = getattr(model, "config", None)
    if config is None:
        raise InputError("model", type(model).__name__, "a model of transformers, which has a config")
    return config


def _by_layer_type(
    scaling: ScalingLike | Mapping[str, ScalingLike], described: configs.ModelConfig
) -> dict[str, Scaling]:
    """A scaling for every layer type; where none is asked for, the one the model has."""
    own = {kind: layer.scaling for kind, layer in described.ropes.items()}
    if isinstance(scaling, Mapping) and not {"name", "rope_type", "type"} & set(scaling):
        unknown = sorted(set(scaling) - set(own))
        if unknown:
            raise InputError("layer type", unknown[0], ", ".join(own))
        return own | {kind: parse(each) for kind, each in scaling.items()}
    one = parse(scaling)
    whole = [kind for kind in own if not configs.is_local(kind)] or list(own)
    return own | dict.fromkeys(whole, one)


def _tables(rotary: RotaryModule, described: configs.ModelConfig, extension: Extension) -> dict[str, RotaryTable]:
    tables = {}
    for kind in rotary.layer_types:
        layer = described.ropes.get(kind) or described.ropes.get(configs.ALL_LAYERS)
        if layer is None:
            raise InputError("layer type", kind, ", ".join(described.ropes))
        own = layer.scaling.frequencies(layer.rope, layer.rope.original_length)
        carried = np.asarray(rotary.inv_freq(kind).double().cpu())
        if own.inv_freq.shape != carried.shape or not np.allclose(own.inv_freq, carried, rtol=1e-4, atol=1e-12):
            raise InputError(
                f"model: {rotary.path}", f"frequencies that its config ({layer.scaling}, {layer.rope}) does not give",
                "a model whose config describes its frequencies",
            )  # fmt: skip
        scaling = extension.scalings[kind if kind in extension.scalings else configs.ALL_LAYERS]
        follow = _follow(scaling, layer.rope) if scaling.dynamic and extension.length is None else None
        start = layer.rope.original_length if extension.length is None else extension.length
        frequencies = scaling.frequencies(layer.rope, start)
        tables[kind] = RotaryTable(frequencies, rotary.arrangement(kind), rotary.inv_freq(kind).device, follow)
    return tables


def _follow(scaling: Scaling, rope: Rope) -> Callable[[int], Frequencies]:
    return lambda length: scaling.frequencies(rope, length)


def _scale_softmax(
    model: nn.Module, text_config: Any, described: configs.ModelConfig, extension: Extension
) -> list[tuple[Any, float]]:
    """Set the softmax scale of latent attention that has a softmax factor; returns what it was.

    Such attention lives in a transformers module that defines `yarn_apply_mscale`, and had it applied already.
    """
    main = described.main
    rope = described.ropes[main].rope
    start = extension.length or rope.original_length
    factor = extension.scalings[main].frequencies(rope, start).softmax_factor
    held: list[tuple[Any, float]] = []
    latent: Any
    for latent in model.modules():
        apply = getattr(sys.modules[type(latent).__module__], "yarn_apply_mscale", None)
        if apply is not None and hasattr(latent, "qk_rope_head_dim") and isinstance(latent.scaling, float):
            held.append((latent, latent.scaling))
            latent.scaling *= factor / apply(text_config.rope_parameters, 1.0)
    if factor != 1 and not held:
        warnings.warn(
            f"{extension.scalings[main]}: its softmax factor {factor:.4f} is for latent attention, which "
            f"{type(model).__name__} does not have; it is left out, as in transformers",
            stacklevel=3,
        )
    return held


def _describe(text_config: Any, described: configs.ModelConfig, extension: Extension) -> dict[str, Any]:
    """Make the config say what is true now; returns the fields as they were."""
    before = {name: copy.deepcopy(getattr(text_config, name)) for name in _KEPT_FIELDS if hasattr(text_config, name)}
    written = copy.deepcopy(before.get("rope_parameters")) or {}
    changed = {
        kind: scaling for kind, scaling in extension.scalings.items() if scaling != described.ropes[kind].scaling
    }
    for kind, scaling in changed.items():
        layer = described.ropes[kind]
        nested = kind != configs.ALL_LAYERS
        said = configs.rope_parameters(scaling, layer.rope, written[kind] if nested else written, extension.length)
        if said is None:
            warnings.warn(
                f"transformers cannot express {scaling}: a model saved now loads with {layer.scaling}", stacklevel=3
            )
            return before
        written = {**written, kind: said} if nested else said
    text_config.rope_parameters = written
    if described.main in changed:
        main, rope = changed[described.main], described.ropes[described.main].rope
        if hasattr(text_config, "original_max_position_embeddings"):
            text_config.original_max_position_embeddings = main.trained_on(rope)
        text_config.max_position_embeddings = round(main.trained_on(rope) * main.reaches(rope, extension.length))
    return before
