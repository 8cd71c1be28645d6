"""A configuration as those read it who know rope_theta and rope_scaling, and not transformers 5's rope_parameters."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from ropewalk import config as configs
from ropewalk.config import LayerRope, ModelConfig, text_part
from ropewalk.config.model import BASE_OF
from ropewalk.errors import InputError
from ropewalk.scaling import Scaling
from ropewalk.scaling.none import NoScaling
from ropewalk.serving.engines.base import Config

# The base that transformers 4 takes where none is given: that of version 5, but for these.
BASES = {
    **BASE_OF,
    "cohere": 10_000.0,
    "falcon_h1": 100_000.0,
    "olmo3": 10_000.0,
    "persimmon": 25_000.0,
    "qwen3_vl_moe_text": 5_000_000.0,
    "qwen3_vl_text": 5_000_000.0,
}


def unscaled(config: Config, bases: Mapping[str, float] = BASES) -> ModelConfig:
    """The ropes without their scaling, whose dict is the `written` of the layers that see the whole text.

    What stands in `rope_parameters` alone is lost, as it is to those readers: the base is then the one that the reader
    has for the architecture in `bases`, or 10,000, whatever the model was trained with. Raises InputError as
    `config.from_dict` does.
    """
    text = dict(text_part(config))
    said = text.pop("rope_scaling", None) or {}
    if not isinstance(said, Mapping):
        raise InputError("rope_scaling", said, "a dict")
    text.pop("rope_parameters", None)
    model_type = str(text.get("model_type", ""))
    if text.get("rope_theta") is None:
        text["rope_theta"] = bases.get(model_type, 10_000.0)
    if model_type.startswith("gemma3"):
        text.setdefault("rope_local_base_freq", 10_000.0)
    model_config = configs.from_dict(text)
    main = model_config.ropes[model_config.main]
    return _with(model_config, dataclasses.replace(main, scaling=NoScaling(), written=said))


def scaled(model_config: ModelConfig, scaling: Scaling) -> ModelConfig:
    """That with a scaling on the layers that see the whole text."""
    return _with(model_config, dataclasses.replace(model_config.ropes[model_config.main], scaling=scaling))


def _with(model_config: ModelConfig, main: LayerRope) -> ModelConfig:
    return dataclasses.replace(model_config, ropes={**model_config.ropes, model_config.main: main})


def number(title: str, said: Mapping[str, Any], key: str) -> float:
    """A number that an engine demands of a rope dict. Raises InputError, in the engine's name, where there is none."""
    value = said.get(key)
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise InputError(f"{title}: {key}", value, "a number")
    return float(value)
