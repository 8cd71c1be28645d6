"""The reference interpretation of a config.json: the rotary embedding that the model was trained with.

Exports must give the same frequencies as this interpretation, and `ropewalk doctor` compares engines with it.
"""

from __future__ import annotations

import dataclasses

from ropewalk import config as configs
from ropewalk.config import LayerRope, ModelConfig
from ropewalk.config.architectures import SHORT_LONG_MSCALE_MODEL_TYPES, SOFTMAX_SCALED_MODEL_TYPES
from ropewalk.scaling import Scaling
from ropewalk.scaling.longrope import LongRoPE
from ropewalk.scaling.ntk import DynamicNTK
from ropewalk.scaling.yarn import YaRN
from ropewalk.serving.engines.base import Config, map_scalings
from ropewalk.serving.engines.rope_dict import drop_softmax_factor


def interpret_as_trained(config: Config) -> ModelConfig:
    """Interpret a config.json as the documentation of transformers 5 does.

    The bugs of transformers' own code are not included; `engines/transformers.py` adds them. Raises InputError as
    `config.from_dict` does.
    """
    model_config = configs.from_dict(config)
    return map_scalings(model_config, lambda layer: without_unused_fields(layer, model_config.model_type))


def without_unused_fields(layer: LayerRope, model_type: str) -> Scaling:
    """Return a layer's scaling without the fields that only other architectures use."""
    scaling, rope_dict = layer.scaling, layer.rope_dict
    if isinstance(scaling, LongRoPE) and model_type in SHORT_LONG_MSCALE_MODEL_TYPES and rope_dict.get("long_mscale"):
        return dataclasses.replace(scaling, attention_factor=float(rope_dict["long_mscale"]))
    if isinstance(scaling, DynamicNTK) and scaling.alpha is not None and not model_type.startswith("hunyuan"):
        return dataclasses.replace(scaling, alpha=None)
    if isinstance(scaling, YaRN) and scaling.mscale_all_dim and model_type not in SOFTMAX_SCALED_MODEL_TYPES:
        return drop_softmax_factor(scaling, layer.rope)
    return scaling
