"""Interpret a configuration as software does that knows rope_theta and rope_scaling, but not rope_parameters.

That is transformers 4 and what was written for it. transformers 5 writes everything into `rope_parameters`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

from ropewalk import config as configs
from ropewalk.config import LayerRope, ModelConfig, get_text_config_dict
from ropewalk.config.architectures import TRANSFORMERS_4_ROPE_THETA
from ropewalk.config.normalize import get_rope_theta
from ropewalk.errors import InputError
from ropewalk.scaling.none import NoScaling
from ropewalk.serving.engines.base import Config

_DEFAULT_ROPE_THETA = 10_000.0


def interpret_legacy_config(
    config: Config, default_rope_theta: Mapping[str, float] = TRANSFORMERS_4_ROPE_THETA
) -> ModelConfig:
    """Return the unscaled rotary embeddings of software that does not know rope_parameters.

    `rope_scaling` becomes the rope dict of the main layers, for the caller to interpret. The content of
    `rope_parameters` is ignored: if rope_theta is only there, the result has the software's default for the
    architecture, whatever base the model was trained with.

    Args:
        config: a config.json.
        default_rope_theta: the software's default bases by model type; 10,000 for all others.

    Raises InputError as `config.from_dict` does.
    """
    text = dict(get_text_config_dict(config))
    rope_scaling = text.pop("rope_scaling", None) or {}
    if not isinstance(rope_scaling, Mapping):
        raise InputError("rope_scaling", rope_scaling, "a dict")
    text.pop("rope_parameters", None)
    model_type = str(text.get("model_type", ""))
    if get_rope_theta(text, {}) is None:
        text["rope_theta"] = default_rope_theta.get(model_type, _DEFAULT_ROPE_THETA)
    if model_type.startswith("gemma3"):
        text.setdefault("rope_local_base_freq", _DEFAULT_ROPE_THETA)
    model_config = configs.from_dict(text)
    rope, base = model_config.main_layer.rope, get_rope_theta(text, {})
    if not isinstance(
        base, list
    ):  # the class in transformers 5 may ignore a base outside rope_parameters, as MiMo's does
        rope = dataclasses.replace(rope, base=float(base))
    main = LayerRope(rope, NoScaling(), rope_scaling)
    return dataclasses.replace(model_config, ropes={**model_config.ropes, model_config.main_layer_type: main})
