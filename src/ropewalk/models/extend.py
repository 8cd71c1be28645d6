"""Extend a transformers model in place, and restore it.

extend(model, "yarn:factor=4")
restore(model)

with extended(model, "dynamic-yarn"):  # restored at the end of the block; model.config does not change
    ...
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

from torch import nn

from ropewalk import config as configs
from ropewalk.errors import InputError
from ropewalk.models.apply import Extension, ScalingLike, build_extension
from ropewalk.models.config_update import ConfigPatch, clear_per_layer_scalings, find_config_update
from ropewalk.models.dynamic import DecoderHooks
from ropewalk.models.patching import PatchSet
from ropewalk.models.rotary_modules import get_text_config
from ropewalk.models.wrappers import unwrap_model
from ropewalk.planning import plan
from ropewalk.scaling.policies import DEFAULT_POLICY, Policy, parse_policy

__all__ = ["Extension", "ScalingLike", "extend", "extended", "extension_of", "restore"]

Model = TypeVar("Model", bound=nn.Module)
_ATTRIBUTE = "_ropewalk_extension"


def extend(
    model: Model,
    scaling: ScalingLike | Mapping[str, ScalingLike] | None = None,
    *,
    target: int | None = None,
    length: int | None = None,
    policy: Policy | str = DEFAULT_POLICY,
    fuse: bool = False,
) -> Model:
    """Give the rotary embeddings of a model the frequencies of a scaling, or its attention a position method, in place.

    The weights do not change. With a scaling, the attention code does not change either, and the model gets its own
    copy of `model.config`, which describes the scaling, so that the model can be saved and loaded with it; no
    configuration describes a position method. With a dynamic scaling, the keys in every KV cache of the model are
    rotated when the frequencies change; `generate` needs no further arguments. A scaling or position method replaces an
    earlier one. Pairs that a model was trained not to rotate (p-RoPE) stay so under every scaling but `Proportional`.

    Args:
        model: any transformers model with rotary embeddings, or a module that holds one (PEFT, `torch.compile`,
            `DataParallel`). Through either, `extend` and `restore` do the same.
        scaling: a scaling or a position method, its spec or its dict; or a dict from layer type to scaling. A single
            one applies to the layers that attend to the whole text. Sliding-window layers keep their own, because no
            text takes them past their training.
        target: a length in tokens to plan a scaling for (`ropewalk.plan`), instead of a scaling.
        length: tokens; fixes a dynamic scaling, or a position method, at its parameters for this length.
        policy: how a dynamic scaling follows the text: "stepped", "continuous" or "request", a `Policy` or its spec.
        fuse: whether attention rotates q and k with `ropewalk.ops.rotate` instead of the model's own function.

    Returns the same model. Warns if transformers cannot express the scaling, so that a saved model would lack it.
    Raises InputError, and leaves the model as it was, if the scaling is invalid, the model has no rotary embeddings, or
    its tables (with `fuse`, its rotation) cannot be reproduced.
    """
    if (scaling is None) == (target is None):
        raise InputError("scaling", scaling, "either a scaling or a target")
    parsed_policy = parse_policy(policy)

    def build(inner: Any) -> Extension:
        chosen = scaling if target is None else plan(configs.read(get_text_config(inner)), target=target).scaling
        extension = build_extension(inner, chosen, length, parsed_policy, fuse)  # type: ignore[arg-type]
        _add_config_update(inner, extension)
        return extension

    extension = _replace_extension(model, build)
    _show_warnings(extension, stacklevel=3)  # last: a filter may turn them into errors
    return model


def restore(model: Model) -> Model:
    """Remove the scaling that `extend` applied, and return the model.

    Its logits are the same as before `extend`, bit by bit. Does nothing to a model that is not extended.
    """
    _detach(model)
    return model


def extension_of(model: nn.Module) -> Extension | None:
    """Return what `extend` applied to a model; None if it is not extended."""
    return next(iter(_extensions_in(model)), None)


@contextmanager
def extended(
    model: nn.Module,
    scaling: ScalingLike | Mapping[str, ScalingLike],
    *,
    length: int | None = None,
    policy: Policy | str = DEFAULT_POLICY,
    fuse: bool = False,
) -> Iterator[None]:
    """Extend a model inside a block; afterwards it is as it was, extended or not.

    The arguments are those of `extend`. `model.config` does not describe the scaling: nothing should be saved inside
    the block. Warnings about the model inside the block are shown.
    """
    parsed_policy = parse_policy(policy)
    previous = _extensions_in(model)
    extension = _replace_extension(model, lambda inner: build_extension(inner, scaling, length, parsed_policy, fuse))
    try:
        _show_warnings(extension, stacklevel=4)  # the caller, past contextlib
        yield
    finally:
        restore(model)
        _attach(previous)


def _replace_extension(model: nn.Module, build: Callable[[Any], Extension]) -> Extension:
    """Restore the model, build an extension of it and apply that. If it fails, apply the previous extension again."""
    previous = _detach(model)
    inner = unwrap_model(model)
    shared_config = getattr(inner, "config", None)
    try:
        extension = build(inner)
        _attach([extension])
    except BaseException:
        _attach(previous)
        raise
    for module in model.modules():  # a wrapper of PEFT refers to the config, too, of which the model now has a copy
        if vars(module).get("config") is shared_config:
            module.config = inner.config
    return extension


def _extensions_in(model: nn.Module) -> list[Extension]:
    """Return the extensions of a model and of its parts.

    An extension is stored on the decoders that it changes, so that it is found through every wrapper and every part.
    """
    inner = unwrap_model(model)
    if not isinstance(inner, nn.Module):
        return []
    stored = (vars(module).get(_ATTRIBUTE) for module in inner.modules())
    return list({id(extension): extension for extension in stored if extension is not None}.values())


def _attach(extensions: Sequence[Extension]) -> None:
    for extension in extensions:
        extension.patches.apply()
        for decoder in extension.decoders:
            setattr(decoder, _ATTRIBUTE, extension)


def _detach(model: nn.Module) -> list[Extension]:
    """Undo the extensions of a model and of its parts, and return them."""
    extensions = _extensions_in(model)
    for extension in extensions:
        extension.patches.revert()
        for decoder in extension.decoders:
            delattr(decoder, _ATTRIBUTE)
    return extensions


def _add_config_update(model: nn.Module, extension: Extension) -> None:
    """Add a patch of the config to an extension, or a warning if transformers cannot express its scaling."""
    text_config, fields = get_text_config(model), None
    methods: list[Any] = [extension.position_method]
    if extension.position_method is None:
        methods = list(extension.scalings.values())
        fields = find_config_update(text_config, extension.scalings, extension.length, extension.module_tables)
        if any(scaling.is_per_layer for scaling in extension.scalings.values()):
            extension.warnings.append(
                "only ropewalk.load reads a set of frequencies for each layer: other readers of a saved model see it "
                "as it was before"
            )
    if fields is None:
        names = " and ".join(dict.fromkeys(str(method) for method in methods))
        policy = f" under the policy {extension.policy}" if extension.is_dynamic else ""
        extension.warnings.append(f"transformers cannot express {names}{policy}: a model saved now loads without it")
    fields = clear_per_layer_scalings(text_config) | (fields or {})
    if fields:
        extension.patches = PatchSet([*extension.patches.patches, ConfigPatch(model, fields)])


def _show_warnings(extension: Extension, stacklevel: int) -> None:
    for message in extension.warnings:
        warnings.warn(message, stacklevel=stacklevel)
    for patch in extension.patches.patches:
        if isinstance(patch, DecoderHooks) and patch.why_not_rotatable is not None:
            warnings.warn(patch.why_not_rotatable, stacklevel=stacklevel)
