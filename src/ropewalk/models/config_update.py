"""The config fields with which transformers builds an extended model itself, and the patch that sets them.

An extended model can be saved as such only if transformers knows the scaling, or another one with the same frequencies,
and if the config class of the architecture accepts it. Rather than list what each architecture accepts (Phi-3 validates
`longrope` alone, PhiMoE reads additional fields), the fields are proven: the rotary modules are built from them, as
loading the saved model would, and must compute the tables of the scaling.
"""

from __future__ import annotations

import copy
import logging
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from transformers import PreTrainedConfig

from ropewalk import config as configs
from ropewalk.compat.transformers import quiet_transformers
from ropewalk.models.patching import AttributePatch
from ropewalk.models.rotary_modules import RotaryModule
from ropewalk.models.rotary_table import RotaryTable
from ropewalk.scaling import Scaling
from ropewalk.scaling.longrope import LongRoPE


@dataclass
class ConfigPatch:
    """Give a model its own copy of its config, with other values of some fields of the text decoder.

    Models that are built from one config object share it, and only one of them is extended. The model keeps the copy
    when the patch is reverted, because the user may have changed other fields of it.

    Attributes:
        model: the model.
        fields: the values by name.
    """

    model: Any
    fields: dict[str, Any]
    _patches: list[AttributePatch] = field(default_factory=list)

    def apply(self) -> None:
        """Set the fields; the first time, on a copy of the config to which all parts of the model then refer."""
        copies: dict[int, Any] = {}
        if not self._patches:
            own_config = copy.deepcopy(self.model.config, copies)  # fills `copies`, by the id of the original
            text_config = configs.get_text_config(own_config)
            self._patches = [AttributePatch(text_config, name, value) for name, value in self.fields.items()]
        for patch in self._patches:
            patch.apply()
        for module in self.model.modules():
            for name, value in vars(module).items():
                if isinstance(value, PreTrainedConfig) and id(value) in copies:
                    setattr(module, name, copies[id(value)])

    def revert(self) -> None:
        """Restore the fields."""
        for patch in self._patches:
            patch.revert()


def find_config_update(
    text_config: Any,
    scalings: Mapping[str, Scaling],
    length: int | None,
    module_tables: list[tuple[RotaryModule, dict[str, RotaryTable]]],
) -> dict[str, Any] | None:
    """Return the config fields with which transformers builds the tables of an extended model.

    Args:
        text_config: the config of the text decoder.
        scalings: the scaling of each layer type.
        length: the length in tokens that fixes dynamic scalings; None if they follow the text.
        module_tables: the rotary modules, each with the tables that it returns, by layer type.

    Returns {} if the config is right already, and None if no fields lead to the tables. A set of frequencies for each
    layer is in a field that only `ropewalk.load` reads.
    """
    if any(scaling.is_per_layer for scaling in scalings.values()):
        return {
            configs.PER_LAYER_FIELD: {layer_type: _without_file(scaling) for layer_type, scaling in scalings.items()}
        }
    model_config = configs.read(text_config)
    changed = {}
    for layer_type, scaling in scalings.items():
        if not _is_unchanged(scaling, model_config.ropes[layer_type], length):
            changed[layer_type] = scaling
    if not changed:
        return {}
    for candidate in (changed, _as_longrope(changed, model_config, length)):
        fields = candidate and _config_fields(text_config, model_config, candidate, length)
        if fields and _builds_tables(text_config, fields, model_config, module_tables):
            return fields
    return None


def pop_per_layer_scalings(text_config: Any) -> dict[str, Any] | None:
    """Remove the scalings that `find_config_update` has put into a config, and return them; None if there are none."""
    scalings: dict[str, Any] | None = vars(text_config).pop(configs.PER_LAYER_FIELD, None)
    return scalings


def clear_per_layer_scalings(text_config: Any) -> dict[str, Any]:
    """Return the fields that clear such scalings in the config of a model that transformers itself has loaded."""
    return {configs.PER_LAYER_FIELD: None} if getattr(text_config, configs.PER_LAYER_FIELD, None) is not None else {}


def _without_file(scaling: Scaling) -> dict[str, Any]:
    """Return a scaling as a dict, without the path of the file that it was read from."""
    return {name: value for name, value in scaling.to_dict().items() if name != "file"}


def _is_unchanged(scaling: Scaling, layer: configs.LayerRope, length: int | None) -> bool:
    """Return whether a scaling leaves the frequencies of a layer type as they are."""
    if scaling.is_dynamic or layer.scaling.is_dynamic:
        return scaling == layer.scaling and length is None
    present = configs.compute_layer_frequencies(layer.scaling, layer, None)
    return configs.compute_layer_frequencies(scaling, layer, length) == present


def _as_longrope(
    scalings: Mapping[str, Scaling], model_config: configs.ModelConfig, length: int | None
) -> dict[str, Scaling] | None:
    """Return the same frequencies as LongRoPE divisors; None if they are dynamic or have a softmax factor."""
    converted: dict[str, Scaling] = {}
    for layer_type, scaling in scalings.items():
        layer = model_config.ropes[layer_type]
        frequencies = configs.compute_layer_frequencies(scaling, layer, length)
        if (scaling.is_dynamic and length is None) or frequencies.softmax_factor != 1:
            return None
        converted[layer_type] = LongRoPE.from_frequencies(
            layer.rope, frequencies, scaling.extension_factor(layer.rope, length), scaling.original_length
        )
    return converted


def _config_fields(
    text_config: Any, model_config: configs.ModelConfig, scalings: Mapping[str, Scaling], length: int | None
) -> dict[str, Any] | None:
    """Return the fields of a config with these scalings; None if transformers has no name for one of them."""
    rope_parameters = copy.deepcopy(getattr(text_config, "rope_parameters", None)) or {}
    main = model_config.main_layer_type
    fields: dict[str, Any] = {}
    for layer_type, scaling in scalings.items():
        is_nested = layer_type != configs.ALL_LAYERS
        rope = model_config.ropes[layer_type].rope
        previous = rope_parameters.get(layer_type) if is_nested else rope_parameters
        layer_parameters = configs.build_rope_parameters(scaling, rope, previous, length)
        if layer_parameters is None:
            return None
        rope_parameters = {**rope_parameters, layer_type: layer_parameters} if is_nested else layer_parameters
        if layer_type == main and (rope.original_length is not None or scaling.original_length is not None):
            fields["original_max_position_embeddings"] = scaling.resolve_original_length(rope)
            fields["max_position_embeddings"] = configs.compute_max_position_embeddings(
                scaling, rope, layer_parameters, length
            )
    fields["rope_parameters"] = rope_parameters
    return {name: value for name, value in fields.items() if hasattr(text_config, name)}


def _builds_tables(
    text_config: Any,
    fields: Mapping[str, Any],
    model_config: configs.ModelConfig,
    module_tables: list[tuple[RotaryModule, dict[str, RotaryTable]]],
) -> bool:
    """Return whether transformers builds rotary modules with the same tables from a config with these fields."""
    long_text = 2 * (model_config.main_layer.rope.original_length or 0)
    try:
        for rotary, tables in module_tables:
            config = copy.deepcopy(rotary.config)
            for name, value in fields.items():
                setattr(config, name, copy.deepcopy(value))
            if rotary.config is not text_config:  # a copy with another base, which it keeps (Granite SWA)
                config.rope_parameters["rope_theta"] = rotary.config.rope_parameters["rope_theta"]
            with quiet_transformers(logging.CRITICAL):  # its warnings will appear when the model is loaded
                built = rotary.built_from(type(config).from_dict(config.to_dict()))
            for layer_type, table in tables.items():
                for length in (1, long_text):
                    if not built.computes(layer_type, table.frequencies_at(length), table.channel_layout, length):
                        return False
    except Exception:  # the code of the architecture refuses fields in any way
        return False
    return True
