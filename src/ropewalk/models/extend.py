"""Put a scaling on a transformers model, in place, and take it off again."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

from torch import nn

from ropewalk import config as configs
from ropewalk.errors import InputError
from ropewalk.frequencies import Frequencies
from ropewalk.models.config_update import config_changes
from ropewalk.models.dynamic import Follower, followers
from ropewalk.models.fused import fusions
from ropewalk.models.rotary_modules import RotaryModule, Swap, rotary_modules
from ropewalk.models.rotary_table import RotaryTable
from ropewalk.planning import plan
from ropewalk.scaling import Scaling, parse
from ropewalk.scaling.policies import DEFAULT_POLICY, Policy, parse_policy

Model = TypeVar("Model", bound=nn.Module)
ScalingLike = Scaling | str | Mapping[str, Any]


@dataclass
class Extension:
    """What `extend` did to a model; kept on the model.

    Attributes:
        scalings: for each layer type.
        policy: how dynamic scalings follow the text.
        length: that fixes a dynamic scaling, tokens.
        changes: call them to undo it, in their order, and again to redo it.
    """

    scalings: dict[str, Scaling]
    policy: Policy
    length: int | None
    changes: list[Callable[[], None]]

    def exchange(self) -> None:
        """Make all changes or, should one of them fail, none."""
        done: list[Callable[[], None]] = []
        try:
            for change in self.changes:
                change()
                done.append(change)
        except BaseException:
            for change in reversed(done):
                change()
            raise
        self.changes.reverse()


def extend(
    model: Model,
    scaling: ScalingLike | Mapping[str, ScalingLike] | None = None,
    *,
    target: int | None = None,
    length: int | None = None,
    policy: Policy | str = DEFAULT_POLICY,
    fuse: bool = False,
) -> Model:
    """Give the model's rotary embeddings the frequencies of `scaling`, in place; weights and attention stay.

    Args:
        model: any transformers model with rotary embeddings.
        scaling: a scaling, its spec or dict; or a dict of layer type to scaling. A single one goes to the layers
            that see the whole text: sliding-window layers, which never pass their training, keep their own.
        target: instead of a scaling, the length in tokens to plan one for (`ropewalk.planning`).
        length: fixes a dynamic scaling at the frequencies of that length, in tokens.
        policy: how a dynamic scaling follows the text: `stepped`, `continuous` or `request`, a `Policy` or its spec.
        fuse: let attention turn q and k by `ropewalk.ops.rotate`, instead of the model's own function.

    With a dynamic scaling, every KV cache of the model is kept right: when the frequencies change, the cached keys
    are turned to the new ones. `generate` needs to be told nothing.
    Returns the same model. `model.config` says what is true afterwards; where transformers cannot express the
    scaling, a warning says so. A scaling put on an extended model replaces the earlier one. Pairs that a model was
    trained to keep still (p-RoPE) stay still under every scaling but `Proportional`.
    Raises InputError for a model without rotary embeddings, or one whose tables (with `fuse`, whose rotation) cannot
    be reproduced; the model is then as it was.
    """
    if (scaling is None) == (target is None):
        raise InputError("scaling", scaling, "either a scaling or a target, one of the two")
    before = extension_of(model)
    restore(model)
    try:
        extension, warning = _planned(model, scaling, target, length, parse_policy(policy), fuse)
        _put(model, extension)
    except BaseException:
        if before is not None:
            _put(model, before)
        raise
    limits = [change.obscure for change in extension.changes if isinstance(change, Follower)]
    for said in filter(None, [warning, *limits]):
        warnings.warn(said, stacklevel=2)
    return model


def restore(model: Model) -> Model:
    """Take the scaling off again: the very same logits as before `extend`. Does nothing to any other model."""
    extension = extension_of(model)
    if extension is not None:
        extension.exchange()
        del model._ropewalk_extension
    return model


def extension_of(model: nn.Module) -> Extension | None:
    """What `extend` did to the model; None for a model as it came."""
    return getattr(model, "_ropewalk_extension", None)


@contextmanager
def extended(
    model: nn.Module,
    scaling: ScalingLike | Mapping[str, ScalingLike],
    *,
    length: int | None = None,
    policy: Policy = DEFAULT_POLICY,
    fuse: bool = False,
) -> Iterator[None]:
    """`extend` for the length of a block; afterwards the model is as it was, extended or not."""
    before = extension_of(model)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # nothing is saved inside the block
        extend(model, scaling, length=length, policy=policy, fuse=fuse)
    try:
        yield
    finally:
        restore(model)
        if before is not None:
            _put(model, before)


def _put(model: nn.Module, extension: Extension) -> None:
    extension.exchange()
    model._ropewalk_extension = extension  # type: ignore[assignment]


def _planned(
    model: nn.Module,
    scaling: ScalingLike | Mapping[str, ScalingLike] | None,
    target: int | None,
    length: int | None,
    policy: Policy,
    fuse: bool,
) -> tuple[Extension, str | None]:
    """All changes to make, and a warning for the user; nothing is changed yet."""
    config = _config_of(model)
    if getattr(config, "is_encoder_decoder", False):
        raise InputError("model", type(model).__name__, "a model without an encoder, which would read the text too")
    text_config = configs.text_config(config)
    modules = rotary_modules(model, text_config)
    model_config = configs.read(text_config)
    if scaling is None:
        scaling = plan(model_config, target=target or 0).scaling
    scalings = _by_layer_type(scaling, model_config)
    served = [(rotary, _tables(rotary, scalings, length, policy)) for rotary in modules]
    softmax, left_out = _softmax_changes(model, text_config, model_config, scalings, length)
    fields = config_changes(text_config, model_config, scalings, length, served)
    changes: list[Callable[[], None]] = [change for rotary, tables in served for change in rotary.install(tables)]
    changes += softmax + [Swap(text_config, name, value) for name, value in (fields or {}).items()]
    ropes = {kind: layer.rope for kind, layer in model_config.ropes.items()}
    dynamic = [
        scaling.resolve_original_length(ropes[kind])
        for kind, scaling in scalings.items()
        if scaling.is_dynamic and not length
    ]
    listening = followers(model, served, ropes, policy, max(dynamic, default=None))
    if fuse:
        decoders = [change for change in listening if isinstance(change, Follower)]
        changes += [change for decoder in decoders for change in fusions(decoder.body, decoder.tables)]
    changes += listening
    if fields is None:
        shown = _shown(scalings) + (f" under the policy {policy}" if dynamic else "")
        left_out = f"transformers cannot express {shown}: a model saved now loads without it"
    return Extension(scalings, policy, length, changes), left_out


def _config_of(model: nn.Module) -> Any:
    config = getattr(model, "config", None)
    if config is None:
        raise InputError("model", type(model).__name__, "a model of transformers, which has a config")
    return config


def _shown(scalings: Mapping[str, Scaling]) -> str:
    return " and ".join(dict.fromkeys(str(scaling) for scaling in scalings.values()))


def _by_layer_type(
    scaling: ScalingLike | Mapping[str, ScalingLike], model_config: configs.ModelConfig
) -> dict[str, Scaling]:
    """A scaling for every layer type; where none is asked for, the one the model has."""
    own = {kind: layer.scaling for kind, layer in model_config.ropes.items()}
    if isinstance(scaling, Mapping) and not {"name", "rope_type", "type"} & set(scaling):
        unknown = sorted(set(scaling) - set(own))
        if unknown:
            raise InputError("layer type", unknown[0], ", ".join(own))
        return own | {kind: parse(each) for kind, each in scaling.items()}
    one = parse(scaling)
    whole = [kind for kind in own if not configs.is_local(kind)] or list(own)
    return own | dict.fromkeys(whole, one)


@dataclass(frozen=True)
class _Follow:
    """The frequencies of a dynamic scaling for a text of so many tokens."""

    scaling: Scaling
    own: configs.LayerRope
    policy: Policy

    def __call__(self, reached: int) -> Frequencies:
        original = self.scaling.resolve_original_length(self.own.rope)
        return configs.layer_frequencies(self.scaling, self.own, self.policy.scaled_for(reached, original))


def _tables(
    rotary: RotaryModule, scalings: Mapping[str, Scaling], length: int | None, policy: Policy
) -> dict[str, RotaryTable]:
    """The tables to serve, for each layer type of the module."""
    ropes = configs.read(rotary.config).ropes
    tables = {}
    for kind in rotary.layer_types:
        named = kind if kind in ropes else configs.ALL_LAYERS
        if named not in ropes:
            raise InputError("layer type", kind, ", ".join(ropes))
        own = ropes[named]
        present = own.scaling.frequencies(own.rope, 1)
        channel_layout = rotary.channel_layout(kind, present)
        if not rotary.gives(kind, present, channel_layout):
            model_config = f"{own.scaling} of {own.rope}"
            raise InputError(
                f"model: {rotary.path}", "a table of its own", f"what its config describes: {model_config}"
            )
        scaling = scalings[named]
        follow = _Follow(scaling, own, policy) if scaling.is_dynamic and length is None else None
        tables[kind] = RotaryTable(
            configs.layer_frequencies(scaling, own, length), channel_layout, rotary.device, follow
        )
    return tables


def _softmax_changes(
    model: nn.Module,
    text_config: Any,
    model_config: configs.ModelConfig,
    scalings: Mapping[str, Scaling],
    length: int | None,
) -> tuple[list[Swap], str | None]:
    """The softmax scales of latent attention, which takes a softmax factor, and a warning where there is none.

    Such attention lives in a transformers module that defines `yarn_apply_mscale`, and had it applied already.
    """
    own, scaling = model_config.ropes[model_config.main], scalings[model_config.main]
    factor = configs.layer_frequencies(scaling, own, length).softmax_factor
    changes = []
    latent: Any
    for latent in model.modules():
        apply = getattr(sys.modules.get(type(latent).__module__), "yarn_apply_mscale", None)
        if apply is not None and hasattr(latent, "qk_rope_head_dim") and hasattr(latent, "scaling"):
            applied = apply(text_config.rope_parameters, 1.0)
            changes.append(Swap(latent, "scaling", latent.scaling * factor / applied))
    if factor != 1 and not changes and scaling != own.scaling:
        return [], (
            f"{scaling}: its softmax factor {factor:.4f} is for latent attention, which {type(model).__name__} "
            "does not have; it is left out, as in transformers"
        )
    return changes, None
