from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from ropewalk import config as configs
from ropewalk.config import LayerRope, ModelConfig, get_text_config_dict
from ropewalk.config.normalize import get_rope_type
from ropewalk.errors import InputError
from ropewalk.scaling import Scaling, from_rope_dict
from ropewalk.scaling.longrope import LongRoPE
from ropewalk.scaling.none import NoScaling
from ropewalk.scaling.proportional import Proportional
from ropewalk.scaling.yarn import YaRN, yarn_mscale_ratio
from ropewalk.serving.engines.base import Config, map_scalings
from ropewalk.serving.engines.folder_engine import FolderEngine, RopeDict
from ropewalk.serving.engines.legacy_config import interpret_legacy_config
from ropewalk.serving.engines.rope_dict import read_longrope, with_one_list

_SUPPORTED_TYPES = ("default", "mrope", "linear", "yarn", "longrope", "su", "llama3", "proportional")
# Architectures that read mscale and mscale_all_dim. Source: exllamav3/architecture/deepseek_v3.py.
_DEEPSEEK_MODEL_TYPES = ("deepseek_v3", "kimi_k2", "mistral4")
_CACHE_PAGE = 256  # tokens


class ExLlamaV3(FolderEngine):
    """ExLlamaV3, which derives YaRN's factor and LongRoPE's attention factor from the declared and original lengths."""

    name = "exllamav3"
    title = "ExLlamaV3"
    version = "1.6.5"
    sources = (
        "exllamav3/util/rope.py",
        "exllamav3/model/config.py (read_rope_settings_default)",
        "exllamav3/architecture/deepseek_v3.py",
    )
    reads_rope_parameters = False  # it reads both forms, and prefers rope_scaling
    derives_longrope_attention_factor = True
    unscaled_length_types = ()

    def argv(self, model: str, length: int) -> list[str]:
        cache = -(-length // _CACHE_PAGE) * _CACHE_PAGE
        return ["python", "examples/chat.py", "-m", model, "-mode", "raw", "-cs", str(cache)]

    def choose_declared_length(self, scaling: Scaling, layer: LayerRope, rope_dict: RopeDict, length: int) -> int:
        if rope_dict["rope_type"] == "yarn":
            return round(float(rope_dict["original_max_position_embeddings"] * rope_dict["factor"]))
        return super().choose_declared_length(scaling, layer, rope_dict, length)

    def _interpret(self, config: Config, length: int) -> ModelConfig:
        text = get_text_config_dict(config)
        # It ignores the rope_parameters of Gemma 3, which are nested by layer type.
        is_gemma3 = str(text.get("model_type", "")).startswith("gemma3")
        model_config = interpret_legacy_config(config) if is_gemma3 else configs.from_dict(config)
        return map_scalings(model_config, lambda layer: self._interpret_layer(layer, model_config, text))

    def _interpret_layer(self, layer: LayerRope, model_config: ModelConfig, text: Config) -> Scaling:
        """Return the scaling that the engine computes for one layer type."""
        rope_dict = layer.rope_dict
        rope_type = get_rope_type(rope_dict)
        if rope_type not in _SUPPORTED_TYPES:
            raise InputError("rope_type", rope_type, ", ".join(_SUPPORTED_TYPES))
        if rope_type in ("default", "mrope"):
            return NoScaling()
        defaults = {"original_max_position_embeddings": 8192} if rope_type == "llama3" else {"factor": 1.0}
        scaling = from_rope_dict({**defaults, **rope_dict, "rope_type": rope_type}, strict=False)
        if isinstance(scaling, Proportional):
            # With rope_scaling it reads partial_rotary_factor from the outer dict, or from rope_parameters.
            nested = (text.get("rope_parameters") or {}).get("partial_rotary_factor", 1)
            return Proportional(float(text.get("partial_rotary_factor", nested)), scaling.factor)
        if isinstance(scaling, YaRN):
            return self._interpret_yarn(scaling, rope_dict, model_config)
        if isinstance(scaling, LongRoPE):
            outer = text.get("original_max_position_embeddings")
            original = rope_dict.get("original_max_position_embeddings", outer)
            lists = read_longrope(rope_dict, original, model_config.max_length)
            return with_one_list(lists, use_long=lists.factor != 1)
        return scaling

    def _interpret_yarn(self, scaling: YaRN, rope_dict: Mapping[str, Any], model_config: ModelConfig) -> YaRN:
        """Return YaRN with the declared over the original length as its factor; the dict's factor is only a default."""
        declared, original = model_config.max_length, rope_dict.get("original_max_position_embeddings")
        if declared is None:
            raise InputError("max_position_embeddings", None, "the length that the model supports, in tokens")
        factor = declared / original if original else scaling.factor
        if factor < 1:
            raise InputError("max_position_embeddings", declared, f"at least {original:,}, the original length")
        is_deepseek = model_config.model_type in _DEEPSEEK_MODEL_TYPES
        attention_factor = scaling.attention_factor
        if attention_factor is None and is_deepseek and scaling.mscale and scaling.mscale_all_dim:
            attention_factor = yarn_mscale_ratio(factor, scaling.mscale, scaling.mscale_all_dim)
        if attention_factor is None and not is_deepseek and rope_dict.get("llama_4_scaling_beta"):
            attention_factor = 1.0
        return dataclasses.replace(
            scaling,
            factor=factor,
            attention_factor=attention_factor,
            mscale=None,
            mscale_all_dim=scaling.mscale_all_dim if is_deepseek else None,
            original_length=original or declared,
        )
