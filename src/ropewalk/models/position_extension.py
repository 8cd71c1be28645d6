"""Apply a position method to a model: find the attention layers that it changes, and collect the patches.

The decoder reads one token twice, with all angles zero and with a different angle for every column of its tables, and
the attention implementation of ropewalk records what its layers pass to attention. A layer takes part only if a
rotation of the first q and k reproduces the second.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from ropewalk import config as configs
from ropewalk.errors import InputError, UnsupportedModelError
from ropewalk.models.attention_interface import (
    BASES,
    LAYER_ATTRIBUTE,
    PositionLayer,
    RecordedCall,
    implementation_name,
    record_attention_calls,
)
from ropewalk.models.cache_layout import (
    RotatedChannels,
    cache_one_token,
    equal_up_to_rounding,
    explain_rotation,
    probe_angles,
)
from ropewalk.models.config_update import ConfigPatch
from ropewalk.models.dynamic import find_decoders
from ropewalk.models.patching import AttributePatch, Patch, PatchSet
from ropewalk.models.position_call import RotatedPairs
from ropewalk.models.position_hooks import PositionHooks
from ropewalk.models.rotary_modules import RotaryModule
from ropewalk.models.rotary_table import RotaryTable
from ropewalk.positions import PositionMethod
from ropewalk.rope import Rope
from ropewalk.scaling.policies import DEFAULT_POLICY, parse_policy

# Options of an attention call that say which keys a query sees, as sparse attention passes them (DeepSeek V3.2,
# MiniMax M3), and modules that choose them. Such a choice is made by trained distances too.
_KEY_CHOICE_OPTIONS = {"indices", "block_indices"}
_KEY_CHOICE_MODULE = "indexer"


def position_patches(
    model: Any,
    text_config: Any,
    rotary_modules: Sequence[RotaryModule],
    method: PositionMethod,
    original_length: int,
) -> tuple[list[Patch], list[Any]]:
    """Return the patches that let a model attend by a position method, and its decoders.

    Args:
        model: a model of transformers.
        text_config: the config of its text decoder.
        rotary_modules: the rotary modules of that decoder.
        method: the position method.
        original_length: tokens the model was trained on.

    Raises UnsupportedModelError or InputError for a model that cannot, in one line.
    """
    base = text_config._attn_implementation
    if base not in BASES:
        raise InputError(
            "attention implementation", base, f"{' or '.join(BASES)}: call model.set_attn_implementation('sdpa') first"
        )
    module_tables = [(rotary, _trained_tables(rotary)) for rotary in rotary_modules]
    ropes = {layer_type: layer.rope for layer_type, layer in configs.read(text_config).ropes.items()}
    implementation = ConfigPatch(model, {"_attn_implementation": implementation_name(base)})
    table_patches = [patch for rotary, tables in module_tables for patch in rotary.table_patches(tables)]
    rope_of_table = {
        table: rotary.layers()[layer_type].layer_rope.rope
        for rotary, tables in module_tables
        for layer_type, table in tables.items()
    }
    patches: list[Patch] = [implementation]
    decoders = []
    known_pairs: dict[Any, RotatedPairs] = {}
    for decoder, tables in find_decoders(model, module_tables).items():
        while_probing = PatchSet([implementation, *table_patches])
        while_probing.apply()
        try:
            layers = _find_layers(decoder, tables, text_config)
        finally:
            while_probing.revert()
        hooks = PositionHooks(
            decoder,
            tables,
            ropes,
            parse_policy(DEFAULT_POLICY),  # no table is dynamic
            original_length,
            method=method,
            implementation=implementation_name(base),
        )
        patches.append(hooks)
        for index, (module, channels) in enumerate(layers):
            table = tables[channels.table]
            pairs = _rotated_pairs(channels, table, rope_of_table[table])
            pairs = known_pairs.setdefault(tuple(vars(pairs).values()), pairs)
            patches.append(AttributePatch(module, LAYER_ATTRIBUTE, PositionLayer(index, pairs, hooks)))
        decoders.append(decoder)
    return patches, decoders


def _trained_tables(rotary: RotaryModule) -> dict[str, RotaryTable]:
    """Return the tables that a rotary module computes as it is, by layer type."""
    tables = {}
    for layer_type, layer in rotary.layers().items():
        frequencies = configs.compute_layer_frequencies(layer.layer_rope.scaling, layer.layer_rope, None)
        tables[layer_type] = RotaryTable(frequencies, layer.channel_layout, rotary.device)
    return tables


def _rotated_pairs(channels: RotatedChannels, table: RotaryTable, rope: Rope) -> RotatedPairs:
    pair_P = tuple(table.channel_layout.columns_U[column][0] for column in channels.columns_P)
    return RotatedPairs(channels.start, channels.layout, channels.sign, pair_P, rope, table.frequencies)


def _find_layers(
    decoder: Any, tables: Mapping[str, RotaryTable], text_config: Any
) -> list[tuple[Any, RotatedChannels]]:
    """Return the attention modules that attend to the whole text with rotated q and k, and the channels that rotate.

    The implementation of ropewalk and the tables must be in place. Raises UnsupportedModelError if there are none, or
    if a position method cannot change one of them.
    """
    name = type(decoder).__name__
    angles, zeros = probe_angles(tables)
    try:
        with record_attention_calls() as unrotated_calls:
            unrotated_cache = cache_one_token(decoder, tables, zeros)
        with record_attention_calls() as rotated_calls:
            rotated_cache = cache_one_token(decoder, tables, angles)
    except Exception as error:  # the code of the architecture may fail in any way
        raise UnsupportedModelError(name, f"probing its attention failed: {error}") from error
    layer_types = getattr(text_config, "layer_types", None) or []
    layers: dict[Any, RotatedChannels] = {}
    num_rotated_calls = 0
    for unrotated, rotated in zip(unrotated_calls, rotated_calls, strict=True):
        module = unrotated.module
        if equal_up_to_rounding(unrotated.query, rotated.query) and equal_up_to_rounding(unrotated.key, rotated.key):
            continue  # a layer without rotary embedding
        num_rotated_calls += 1
        if _is_local(unrotated, layer_types):
            continue
        if _KEY_CHOICE_OPTIONS & set(unrotated.options) or getattr(module, _KEY_CHOICE_MODULE, None) is not None:
            raise UnsupportedModelError(name, f"its {type(module).__name__} chooses keys by their trained distances")
        layers[module] = _explain(name, unrotated, rotated, tables, angles)
    if num_rotated_calls < _count_rotated_layers(unrotated_cache, rotated_cache):
        raise UnsupportedModelError(name, "its attention does not go through the AttentionInterface of transformers")
    if not layers:
        raise UnsupportedModelError(name, "all of its layers with a rotary embedding attend to a window only")
    return list(layers.items())


def _is_local(call: RecordedCall, layer_types: Sequence[str]) -> bool:
    """Return whether a module attends to a window only: its call says so, or the type of its layer."""
    index = getattr(call.module, "layer_idx", None)
    layer_type = layer_types[index] if isinstance(index, int) and 0 <= index < len(layer_types) else ""
    return bool(call.options.get("sliding_window")) or configs.is_local(layer_type)


def _explain(
    name: str,
    unrotated: RecordedCall,
    rotated: RecordedCall,
    tables: Mapping[str, RotaryTable],
    angles: Mapping[str, Tensor],
) -> RotatedChannels:
    """Return the channels of q and k that a module rotates.

    Raises UnsupportedModelError if no rotation explains both.
    """
    explained = [
        explain_rotation(before, after, 0, "keys", tables, angles)
        for before, after in ((unrotated.query, rotated.query), (unrotated.key, rotated.key))
    ]
    if explained[0] is None or explained[0] != explained[1]:
        reason = f"what its {type(unrotated.module).__name__} passes to attention is no rotation of q and k"
        raise UnsupportedModelError(name, reason)
    return explained[0]


def _count_rotated_layers(unrotated_cache: Any, rotated_cache: Any) -> int:
    """Return how many layers of a cache hold keys that depend on the angles."""
    count = 0
    for unrotated, rotated in zip(unrotated_cache.layers, rotated_cache.layers, strict=True):
        keys, rotated_keys = getattr(unrotated, "keys", None), getattr(rotated, "keys", None)
        if isinstance(keys, Tensor) and isinstance(rotated_keys, Tensor):
            count += not equal_up_to_rounding(keys, rotated_keys)
    return count
