"""What the config of an extended model says, so that transformers loads it with the very same tables."""

from __future__ import annotations

import copy
import logging
from collections.abc import Mapping
from typing import Any

import numpy as np

from ropewalk import config as configs
from ropewalk.compat.transformers import quiet_transformers
from ropewalk.models.rotary_modules import RotaryModule
from ropewalk.models.rotary_table import RotaryTable
from ropewalk.scaling import Scaling
from ropewalk.scaling.longrope import LongRoPE

_STILL = 1e12  # the divisor of a pair that stands still: the largest that LongRoPE takes


def config_changes(
    text_config: Any,
    model_config: configs.ModelConfig,
    scalings: Mapping[str, Scaling],
    length: int | None,
    served: list[tuple[RotaryModule, dict[str, RotaryTable]]],
) -> dict[str, Any] | None:
    """The fields with which transformers builds these very tables; None when there are none.

    Proven by building the rotary modules from them, as loading would: some architectures validate more strictly
    than others (Phi-3 knows longrope alone), or read fields of their own (PhiMoE).
    """
    changed = {kind: each for kind, each in scalings.items() if not _same(each, model_config.ropes[kind], length)}
    if not changed:
        return {}
    for said in (changed, _as_longrope(changed, model_config, length)):
        fields = said and _fields(text_config, model_config, said, length)
        if fields and _builds(text_config, fields, model_config, served):
            return fields
    return None


def _same(scaling: Scaling, own: configs.LayerRope, length: int | None) -> bool:
    """Whether it gives such layers what they have."""
    if scaling.is_dynamic or own.scaling.is_dynamic:
        return scaling == own.scaling and length is None
    return configs.layer_frequencies(scaling, own, length) == configs.layer_frequencies(own.scaling, own, None)


def _as_longrope(
    changed: Mapping[str, Scaling], model_config: configs.ModelConfig, length: int | None
) -> dict[str, Scaling] | None:
    """The same frequencies as divisors, which say any static ones."""
    said: dict[str, Scaling] = {}
    for kind, scaling in changed.items():
        own = model_config.ropes[kind]
        frequencies = configs.layer_frequencies(scaling, own, length)
        if (scaling.is_dynamic and length is None) or frequencies.softmax_factor != 1:
            return None
        with np.errstate(divide="ignore"):
            divisors = tuple(np.minimum(own.rope.inv_freq / frequencies.inv_freq, _STILL).tolist())
        said[kind] = LongRoPE(
            divisors,
            divisors,
            factor=scaling.extension_factor(own.rope, length),
            attention_factor=frequencies.attention_factor,
            original_length=scaling.original_length,
        )
    return said


def _fields(
    text_config: Any, model_config: configs.ModelConfig, said: Mapping[str, Scaling], length: int | None
) -> dict[str, Any] | None:
    written = copy.deepcopy(getattr(text_config, "rope_parameters", None)) or {}
    for kind, scaling in said.items():
        nested = kind != configs.ALL_LAYERS
        before = written.get(kind) if nested else written
        one = configs.rope_parameters(scaling, model_config.ropes[kind].rope, before, length)
        if one is None:
            return None
        written = {**written, kind: one} if nested else one
    fields = {"rope_parameters": written}
    if model_config.main in said:
        main, rope = said[model_config.main], model_config.ropes[model_config.main].rope
        if rope.original_length is not None or main.original_length is not None:
            fields["original_max_position_embeddings"] = main.resolve_original_length(rope)
            one = written if model_config.main == configs.ALL_LAYERS else written[model_config.main]
            fields["max_position_embeddings"] = configs.declared_length(main, rope, one, length)
    return {name: value for name, value in fields.items() if hasattr(text_config, name)}


def _builds(
    text_config: Any,
    fields: Mapping[str, Any],
    model_config: configs.ModelConfig,
    served: list[tuple[RotaryModule, dict[str, RotaryTable]]],
) -> bool:
    """Whether the rotary modules of a model that is loaded with these fields give the same tables."""
    past = 2 * (model_config.ropes[model_config.main].rope.original_length or 0)
    try:
        for rotary, tables in served:
            config = copy.deepcopy(rotary.config)
            for name, value in fields.items():
                setattr(config, name, copy.deepcopy(value))
            if rotary.config is not text_config:  # a copy with a base of its own, which it keeps
                config.rope_parameters["rope_theta"] = rotary.config.rope_parameters["rope_theta"]
            with quiet_transformers(logging.CRITICAL):  # it will say what it has to say when the model is loaded
                built = rotary.built_from(type(config).from_dict(config.to_dict()))
            for kind, table in tables.items():
                for length in (1, past):
                    if not built.gives(kind, table.frequencies_at(length), table.channel_layout, length):
                        return False
    except Exception:  # it is the architecture's own code that decides, in whatever way
        return False
    return True
