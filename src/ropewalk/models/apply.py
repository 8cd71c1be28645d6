"""Apply a scaling to a model: compute its tables and collect the patches that put them in place.

`build_extension` computes everything and changes nothing; `Extension.patches` makes the changes and undoes them. The
functions for users are in extend.py.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import nn

from ropewalk import config as configs
from ropewalk.compat.transformers import applied_softmax_factor
from ropewalk.errors import InputError, UnknownNameError, check_length
from ropewalk.frequencies import Frequencies
from ropewalk.models.dynamic import DecoderHooks, find_decoders
from ropewalk.models.fused import fuse_patches
from ropewalk.models.generation import generation_patches
from ropewalk.models.layer_tables import LayerTablePatch, LayerTables, TableLayers, find_table_layers
from ropewalk.models.patching import AttributePatch, Patch, PatchSet
from ropewalk.models.position_extension import position_patches
from ropewalk.models.position_options import complete_position_method
from ropewalk.models.rotary_modules import RotaryModule, find_rotary_modules, get_text_config
from ropewalk.models.rotary_table import LayerFrequencies, RotaryTable
from ropewalk.positions import PositionMethod, parse, parse_scaling
from ropewalk.scaling import Scaling
from ropewalk.scaling.none import NoScaling
from ropewalk.scaling.policies import Policy

ScalingLike = Scaling | PositionMethod | str | Mapping[str, Any]


@dataclass
class Extension:
    """A scaling or a position method that is, or can be, applied to a model.

    Attributes:
        scalings: the scaling of each layer type; with a position method, those that the model comes with.
        policy: how dynamic scalings follow the text.
        length: the length in tokens that fixes dynamic scalings; None if they follow the text.
        module_tables: the rotary modules of the model, each with the tables that it returns, by layer type.
        patches: the changes to the model.
        decoders: the modules that take the text and contain the rotary modules.
        warnings: what the user should know about the extended model, one sentence each.
        position_method: the position method; None for a scaling.
    """

    scalings: dict[str, Scaling]
    policy: Policy
    length: int | None
    module_tables: list[tuple[RotaryModule, dict[str, RotaryTable]]]
    patches: PatchSet
    decoders: list[Any] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    position_method: PositionMethod | None = None

    @property
    def is_dynamic(self) -> bool:
        """Whether the frequencies depend on the length of the text."""
        return self.length is None and any(scaling.is_dynamic for scaling in self.scalings.values())


@dataclass(frozen=True)
class DynamicFrequencies:
    """The frequencies of a dynamic scaling as a function of the length of the text; can be pickled."""

    scaling: Scaling
    layer: configs.LayerRope
    policy: Policy

    def __call__(self, length: int) -> Frequencies:
        """Return the frequencies for a text of `length` tokens."""
        original_length = self.scaling.resolve_original_length(self.layer.rope)
        target_length = self.policy.scaled_length(length, original_length)
        return configs.compute_layer_frequencies(self.scaling, self.layer, target_length)


def build_extension(
    model: nn.Module,
    scaling: ScalingLike | Mapping[str, ScalingLike],
    length: int | None,
    policy: Policy,
    fuse: bool,
) -> Extension:
    """Compute the tables of a scaling and the patches that apply it, without changing the model.

    The arguments are those of `extend`. Raises InputError as `extend` does.
    """
    if length is not None:
        check_length("length", length)
    text_config = get_text_config(model)
    rotary_modules = find_rotary_modules(model, text_config)
    model_config = configs.read(text_config)
    method: Any = scaling if _is_by_layer_type(scaling) else parse(scaling)
    if isinstance(method, PositionMethod):
        if fuse:
            raise InputError("fuse", fuse, f"False with {method.name}, which rotates queries and keys itself")
        return _build_position_extension(model, method, length, policy, text_config, rotary_modules, model_config)
    scalings = _scaling_of_each_layer_type(method, model_config)
    table_layers = {
        layer_type: find_table_layers(model, layer_type) for layer_type, each in scalings.items() if each.is_per_layer
    }
    module_tables = [(rotary, _build_tables(rotary, scalings, length, policy)) for rotary in rotary_modules]
    extension = Extension(scalings, policy, length, module_tables, PatchSet([]))
    patches: list[Patch] = []
    for rotary, tables in module_tables:
        patches += rotary.table_patches(tables)
    for layer_type, layers in table_layers.items():
        patches += _per_layer_patches(model, scalings[layer_type], layers, module_tables)
    patches += _softmax_patches(model, text_config, model_config, extension)
    ropes = {layer_type: layer.rope for layer_type, layer in model_config.ropes.items()}
    dynamic_lengths = [
        scaling.resolve_original_length(ropes[layer_type])
        for layer_type, scaling in scalings.items()
        if scaling.is_dynamic and length is None
    ]
    decoder_hooks = [
        DecoderHooks(decoder, tables, ropes, policy, max(dynamic_lengths, default=None))
        for decoder, tables in find_decoders(model, module_tables).items()
    ]
    if fuse:
        for hooks in decoder_hooks:
            patches += fuse_patches(hooks.decoder, hooks.tables)
    for hooks in decoder_hooks:
        patches += [hooks, *generation_patches(model, hooks)]
    extension.patches = PatchSet(patches)
    extension.decoders = [hooks.decoder for hooks in decoder_hooks]
    return extension


def _scaling_of_each_layer_type(
    scaling: Scaling | Mapping[str, ScalingLike], model_config: configs.ModelConfig
) -> dict[str, Scaling]:
    """Return a scaling for every layer type; those that are not given keep the scaling that the model comes with."""
    scalings = {layer_type: layer.scaling for layer_type, layer in model_config.ropes.items()}
    if isinstance(scaling, Mapping):
        for layer_type, layer_scaling in scaling.items():
            if layer_type not in scalings:
                raise UnknownNameError("layer type", layer_type, scalings)
            scalings[layer_type] = parse_scaling(layer_scaling, "for one layer type")
        return scalings
    global_layer_types = [layer_type for layer_type in scalings if not configs.is_local(layer_type)]
    return scalings | dict.fromkeys(global_layer_types or scalings, scaling)


def _is_by_layer_type(scaling: ScalingLike | Mapping[str, ScalingLike]) -> bool:
    return isinstance(scaling, Mapping) and not {"name", "rope_type", "type"} & set(scaling)


def _build_position_extension(
    model: nn.Module,
    method: PositionMethod,
    length: int | None,
    policy: Policy,
    text_config: Any,
    rotary_modules: list[RotaryModule],
    model_config: configs.ModelConfig,
) -> Extension:
    """Compute the patches that apply a position method. The model keeps its rotary tables."""
    method, original_length = complete_position_method(method, text_config, model_config)
    if length is not None:
        method = method.resolve(original_length, length)
    patches, decoders = position_patches(model, text_config, rotary_modules, method, original_length)
    scalings = {layer_type: layer.scaling for layer_type, layer in model_config.ropes.items()}
    return Extension(scalings, policy, length, [], PatchSet(patches), decoders, position_method=method)


def _build_tables(
    rotary: RotaryModule, scalings: Mapping[str, Scaling], length: int | None, policy: Policy
) -> dict[str, RotaryTable]:
    """Return the tables that a rotary module must return, by layer type."""
    tables = {}
    for layer_type, layer in rotary.layers().items():
        scaling = scalings[layer.config_layer_type]
        frequencies = _compute_frequencies(scaling, layer.layer_rope, length)
        follows_text = scaling.is_dynamic and length is None
        frequencies_for_length = DynamicFrequencies(scaling, layer.layer_rope, policy) if follows_text else None
        tables[layer_type] = RotaryTable(frequencies, layer.channel_layout, rotary.device, frequencies_for_length)
    return tables


def _compute_frequencies(scaling: Scaling, layer: configs.LayerRope, length: int | None) -> Frequencies:
    """Return the frequencies of the table of a layer type: `LayerFrequencies` if each layer has its own."""
    if not scaling.is_per_layer:
        return configs.compute_layer_frequencies(scaling, layer, length)
    unscaled = configs.compute_layer_frequencies(NoScaling(), layer, None)
    return LayerFrequencies(unscaled.inv_freq, layers=configs.compute_per_layer_frequencies(scaling, layer))


def _per_layer_patches(
    model: nn.Module,
    scaling: Scaling,
    layers: TableLayers,
    module_tables: list[tuple[RotaryModule, dict[str, RotaryTable]]],
) -> list[Patch]:
    """Return the patches that give each layer its own table."""
    [table] = [tables[layers.layer_type] for rotary, tables in module_tables if rotary.module is layers.rotary.module]
    assert isinstance(table.frequencies, LayerFrequencies)
    sets = table.frequencies.layers
    if len(sets) != len(layers.layers):
        expected = f"one set for each of the {len(layers.layers)} layers of {type(model).__name__} that take the table"
        raise InputError("scaling", f"{scaling} with {len(sets)} sets", expected)
    layer_tables = LayerTables(table, sets)
    return [
        # As part of the rotary module, the tables move with the model.
        AttributePatch(layers.rotary.module, f"ropewalk_{layers.layer_type}_layers", layer_tables),
        LayerTablePatch(layers, layer_tables),
    ]


def _softmax_patches(
    model: nn.Module, text_config: Any, model_config: configs.ModelConfig, extension: Extension
) -> list[Patch]:
    """Return the patches of the softmax scale of latent attention.

    Adds a warning to the extension if the scaling has a softmax factor and the model no such attention.
    """
    layer, scaling = model_config.main_layer, extension.scalings[model_config.main_layer_type]
    factor = _compute_frequencies(scaling, layer, extension.length).softmax_factor
    patches: list[Patch] = []
    rope_parameters = getattr(text_config, "rope_parameters", None) or {}  # remote code may have rope_theta alone
    module: Any
    for module in model.modules():
        applied = applied_softmax_factor(module, rope_parameters)
        if applied is not None:
            patches.append(AttributePatch(module, "scaling", module.scaling * factor / applied))
    if factor != 1 and not patches and scaling != layer.scaling:
        extension.warnings.append(
            f"the softmax factor {factor:.4g} of {scaling} applies to latent attention, which {type(model).__name__} "
            "does not have; it is left out, as in transformers"
        )
    return patches
