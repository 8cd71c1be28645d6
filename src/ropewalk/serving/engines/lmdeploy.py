from __future__ import annotations

import dataclasses

from ropewalk import config as configs
from ropewalk.config import LayerRope, ModelConfig
from ropewalk.config.architectures import SOFTMAX_SCALED_MODEL_TYPES
from ropewalk.config.normalize import get_rope_type
from ropewalk.errors import InputError
from ropewalk.scaling import Scaling
from ropewalk.scaling.linear import Linear
from ropewalk.scaling.longrope import LongRoPE
from ropewalk.scaling.none import NoScaling
from ropewalk.scaling.ntk import DynamicNTK
from ropewalk.scaling.yarn import YaRN, yarn_mscale
from ropewalk.serving.engines.base import Config, map_scalings
from ropewalk.serving.engines.folder_engine import FolderEngine
from ropewalk.serving.engines.rope_dict import mscale_pair_ratio, mscale_ratio, read_longrope

# Architectures that the TurboMind backend serves. The PyTorch backend serves all others.
# Source: lmdeploy/turbomind/supported_models.py.
_TURBOMIND_MODEL_TYPES = (
    "glm4_moe_lite", "gpt_oss", "internlm2", "internlm3", "llama", "mixtral", "qwen2", "qwen2_moe", "qwen2_vl",
    "qwen2_vl_text", "qwen2_5_vl", "qwen2_5_vl_text", "qwen3", "qwen3_moe", "qwen3_5", "qwen3_5_text", "qwen3_5_moe",
)  # fmt: skip
_TURBOMIND_TYPES = ("default", "mrope", "linear", "dynamic", "yarn", "llama3")
_PYTORCH_TYPES = ("default", "mrope", "fope", "linear", "dynamic", "yarn", "longrope", "su", "llama3")


class LMDeploy(FolderEngine):
    """LMDeploy with its default backend: TurboMind for the architectures that it supports, PyTorch for all others."""

    name = "lmdeploy"
    title = "LMDeploy"
    version = "0.18.0"
    sources = (
        "lmdeploy/turbomind/models/utils.py",
        "src/turbomind/models/attention_weight.cc",
        "lmdeploy/pytorch/nn/rotary_embedding.py",
        "lmdeploy/pytorch/backends/default/rotary_embedding.py",
    )
    reads_rope_parameters = True
    override_option = "--hf-overrides"
    transformers_version = 5
    derives_longrope_attention_factor = True

    def argv(self, model: str, length: int) -> list[str]:
        return ["lmdeploy", "serve", "api_server", model, "--session-len", str(length)]

    def merges_overrides(self, config: Config) -> bool:
        return True

    def alternative_changes(self, changes: Config) -> list[Config]:
        """Return the changes that encode YaRN for TurboMind.

        They declare the original length, and a shorter one as original length: `_interpret_turbomind` computes the ramp
        for the declared length, and the factor is the ratio of the two.
        """
        rope_dict = changes["rope_parameters"]
        if rope_dict.get("rope_type") != "yarn":
            return []
        original = rope_dict["original_max_position_embeddings"]
        turbomind_dict = {
            **rope_dict,
            "attention_factor": rope_dict.get("attention_factor") or yarn_mscale(rope_dict["factor"]),
            "original_max_position_embeddings": round(original / rope_dict["factor"]),
        }
        return [{**changes, "rope_parameters": turbomind_dict, "max_position_embeddings": original}]

    def _interpret(self, config: Config, length: int) -> ModelConfig:
        model_config = configs.from_dict(config)
        is_turbomind = model_config.model_type in _TURBOMIND_MODEL_TYPES
        interpret_layer = self._interpret_turbomind if is_turbomind else self._interpret_pytorch
        return map_scalings(model_config, lambda layer: interpret_layer(layer, model_config))

    def _interpret_turbomind(self, layer: LayerRope, model_config: ModelConfig) -> Scaling:
        """Return the scaling that the TurboMind backend computes for one layer type."""
        rope_dict, scaling, declared = layer.rope_dict, layer.scaling, model_config.max_length
        rope_type = get_rope_type(rope_dict)
        if rope_type not in _TURBOMIND_TYPES:
            raise InputError("rope_type", rope_type, "default, linear, dynamic, yarn, llama3; or --backend pytorch")
        if isinstance(scaling, DynamicNTK):
            return DynamicNTK(scaling.factor, original_length=declared) if scaling.factor > 1 else NoScaling()
        if not isinstance(scaling, YaRN):
            return scaling
        original = _original_length(layer, model_config)
        if not declared or not original or declared < original:
            raise InputError("max_position_embeddings", declared, f"at least the original length, {original}")
        # The two lengths give the factor, and the one in the dict is ignored. The ramp is computed as if the model
        # had been trained on the declared length.
        return YaRN(
            factor=declared / original,
            beta_fast=scaling.beta_fast,
            beta_slow=scaling.beta_slow,
            attention_factor=scaling.attention_factor or mscale_pair_ratio(rope_dict, scaling.factor),
            mscale_all_dim=_softmax_mscale(scaling, model_config),
            original_length=declared,
        )

    def _interpret_pytorch(self, layer: LayerRope, model_config: ModelConfig) -> Scaling:
        """Return the scaling that the PyTorch backend computes for one layer type."""
        rope_dict, scaling = layer.rope_dict, layer.scaling
        rope_type = get_rope_type(rope_dict)
        if rope_type not in _PYTORCH_TYPES:
            raise InputError("rope_type", rope_type, "default, linear, dynamic, yarn, longrope, llama3")
        if model_config.model_type == "gemma3_text":
            return self._interpret_gemma3(layer, model_config)
        if isinstance(scaling, DynamicNTK):
            return DynamicNTK(scaling.factor, original_length=model_config.max_length)
        if isinstance(scaling, LongRoPE):
            original = _original_length(layer, model_config)
            return read_longrope(rope_dict, original, model_config.max_length)
        if not isinstance(scaling, YaRN):
            return scaling
        reads_mscales = scaling.mscale_all_dim and scaling.mscale != 0
        default = mscale_ratio(rope_dict, scaling.factor) if reads_mscales else yarn_mscale(scaling.factor)
        return dataclasses.replace(
            scaling,
            attention_factor=scaling.attention_factor or default,
            mscale=None,
            mscale_all_dim=_softmax_mscale(scaling, model_config),
            original_length=_original_length(layer, model_config),
        )

    def _interpret_gemma3(self, layer: LayerRope, model_config: ModelConfig) -> Scaling:
        """Return linear scaling for the main layers, whatever the type of the dict; the factor is required."""
        if layer != model_config.main_layer:
            return NoScaling()
        factor = layer.rope_dict.get("factor")
        if factor is None:
            raise InputError("factor", None, "a factor for the layers of Gemma 3 that attend to the whole text")
        return Linear(float(factor))


def _softmax_mscale(scaling: YaRN, model_config: ModelConfig) -> float | None:
    """Return the `mscale_all_dim` that the architecture's attention applies to its softmax scale, or None."""
    return scaling.mscale_all_dim if model_config.model_type in SOFTMAX_SCALED_MODEL_TYPES else None


def _original_length(layer: LayerRope, model_config: ModelConfig) -> int | None:
    """Return the original length. It is read from the dict only, except for Phi models and the old type `su`."""
    rope_dict = layer.rope_dict
    if model_config.model_type.startswith("phi") or "su" in (rope_dict.get("rope_type"), rope_dict.get("type")):
        return layer.rope.original_length
    original: int | None = rope_dict.get("original_max_position_embeddings", model_config.max_length)
    return original
