from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from ropewalk.config import ALL_LAYERS, LayerRope, ModelConfig, get_text_config_dict
from ropewalk.config.architectures import (
    MODULE_REJECTS_SCALING_MODEL_TYPES,
    SHORT_LONG_MSCALE_MODEL_TYPES,
    UNSET_HEAD_DIM_MODEL_TYPES,
)
from ropewalk.config.normalize import get_rope_type
from ropewalk.errors import InputError
from ropewalk.rope import Rope
from ropewalk.scaling.longrope import LongRoPE
from ropewalk.scaling.none import NoScaling
from ropewalk.scaling.proportional import Proportional
from ropewalk.scaling.yarn import YaRN
from ropewalk.serving.engines.base import Config
from ropewalk.serving.engines.folder_engine import FolderEngine
from ropewalk.serving.engines.legacy_config import interpret_legacy_config
from ropewalk.serving.engines.rope_dict import with_one_list
from ropewalk.serving.engines.tables import load_table
from ropewalk.serving.engines.trained_config import interpret_as_trained

# The types of ROPE_INIT_FUNCTIONS in modeling_rope_utils.py, and `default`. All others raise a KeyError when the model
# is built, unless the configuration class of the architecture renames them.
_ROPE_TYPES = ("default", "linear", "dynamic", "yarn", "longrope", "llama3", "proportional")
# Source: configuration_*.py of transformers 5.24.0.
_RENAMED_TYPES = {
    **dict.fromkeys(("phi3", "phi4_multimodal"), "su"),
    **dict.fromkeys(("qwen2_vl", "qwen2_vl_text", "qwen2_5_vl", "qwen2_5_vl_text"), "mrope"),
}


class Transformers(FolderEngine):
    """transformers 5 with its bugs. Without them it is the reference, `interpret_as_trained`."""

    name = "transformers"
    title = "transformers"
    version = "5.24.0"
    sources = (
        "src/transformers/modeling_rope_utils.py",
        "src/transformers/models/*/configuration_*.py",
        "src/transformers/models/phimoe/modeling_phimoe.py",
    )
    reads_rope_parameters = True
    transformers_version = 5
    requirements = ("torch==2.13.0", "transformers==5.24.0", "accelerate")

    def argv(self, model: str, length: int) -> list[str]:
        return ["transformers", "serve", model]

    def _interpret(self, config: Config, length: int) -> ModelConfig:
        row = load_table(self.name).find_model_type(config)
        model_config, text = interpret_as_trained(config), get_text_config_dict(config)
        if model_config.model_type == "esm":  # its rotary module reads rope_theta next to rope_parameters
            return interpret_legacy_config({**config, "rope_scaling": None})
        ropes = {
            layer_type: self._interpret_layer(layer_type, layer, model_config.model_type, text, row)
            for layer_type, layer in model_config.ropes.items()
        }
        return dataclasses.replace(model_config, ropes=ropes)

    def _interpret_layer(
        self, layer_type: str, layer: LayerRope, model_type: str, text: Config, row: Mapping[str, Any]
    ) -> LayerRope:
        """Return the rope and the scaling that the rotary module computes for one layer type."""
        scaling, rope_type = layer.scaling, get_rope_type(layer.rope_dict)
        if rope_type not in _ROPE_TYPES and rope_type != _RENAMED_TYPES.get(model_type):
            raise InputError("rope_type", rope_type, ", ".join(_ROPE_TYPES))
        if model_type in MODULE_REJECTS_SCALING_MODEL_TYPES and not isinstance(scaling, NoScaling):
            raise InputError(
                "rope_type", scaling.name, f"default, because the rotary module of {model_type} supports no scaling"
            )
        if isinstance(scaling, Proportional) and text.get("qk_rope_head_dim"):
            expected = "another type, because proportional ignores qk_rope_head_dim and rotates the complete head"
            raise InputError("rope_type", scaling.name, expected)
        if isinstance(scaling, YaRN):
            if model_type in UNSET_HEAD_DIM_MODEL_TYPES and text.get("head_dim") is None:
                raise InputError("head_dim", None, f"a number, which yarn needs in {model_type}")
            if layer_type != ALL_LAYERS:
                # Bug: it looks for truncate in the outer dict, next to the layer types, where it never is.
                scaling = dataclasses.replace(scaling, truncate=True)
        if isinstance(scaling, LongRoPE) and model_type in SHORT_LONG_MSCALE_MODEL_TYPES:
            # Bug: the rotary module of PhiMoE never switches to the long list.
            scaling = with_one_list(scaling, use_long=False)
        rope = self._with_actual_dim(layer, model_type, text, row)
        return dataclasses.replace(layer, rope=rope, scaling=scaling)

    def _with_actual_dim(self, layer: LayerRope, model_type: str, text: Config, row: Mapping[str, Any]) -> Rope:
        """Return the rope of a layer with the number of dimensions that the rotary module really rotates."""
        partial = layer.rope_dict.get("partial_rotary_factor") or text.get("partial_rotary_factor")
        reads_partial = row.get("partial_rotary_factor", True) or not isinstance(layer.scaling, NoScaling)
        ignores_partial = partial and not reads_partial
        ignores_rotary_dim = model_type == "minimax_m3_vl_text" and not partial
        if not ignores_partial and not ignores_rotary_dim:
            return layer.rope
        dim = layer.rope.dim if text.get("qk_rope_head_dim") else round(layer.rope.dim / (partial or 1))
        return dataclasses.replace(layer.rope, dim=text.get("head_dim") or dim)
