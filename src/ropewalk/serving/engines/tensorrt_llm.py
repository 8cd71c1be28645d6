from __future__ import annotations

import dataclasses
from typing import Any

from ropewalk import config as configs
from ropewalk.config import LayerRope, ModelConfig
from ropewalk.config.architectures import SOFTMAX_SCALED_MODEL_TYPES
from ropewalk.errors import InputError
from ropewalk.scaling import Scaling
from ropewalk.scaling.longrope import LongRoPE
from ropewalk.scaling.none import NoScaling
from ropewalk.scaling.ntk import DynamicNTK
from ropewalk.scaling.yarn import YaRN
from ropewalk.serving.engines.base import Config, map_scalings
from ropewalk.serving.engines.folder_engine import FolderEngine
from ropewalk.serving.engines.load_checks import check_served_length
from ropewalk.serving.engines.rope_dict import mscale_ratio, read_longrope, require_number, with_one_list

_SUPPORTED_TYPES = ("default", "none", "linear", "dynamic", "longrope", "llama3", "yarn", "mrope")


class TensorRTLLM(FolderEngine):
    """The PyTorch backend of TensorRT-LLM, which trtllm-serve starts by default."""

    name = "tensorrt-llm"
    title = "TensorRT-LLM"
    version = "4f4a9f5c4 (main)"
    sources = (
        "tensorrt_llm/_torch/attention_backend/interface.py (RopeParams)",
        "tensorrt_llm/functional.py (RopeEmbeddingUtils)",
        "tensorrt_llm/_torch/models/modeling_utils.py (infer_max_seq_len)",
        "tensorrt_llm/_torch/models/modeling_gpt_oss.py",
    )
    # Its releases that use transformers 4 read the base from rope_parameters, but not the scaling.
    reads_rope_parameters = False
    tokenizer_class = "PreTrainedTokenizerFast"
    transformers_version = 4
    reads_attention_factor = False
    derives_longrope_attention_factor = True
    unscaled_length_types = ()  # the table has max_position_embeddings positions, whatever the factor

    def argv(self, model: str, length: int) -> list[str]:
        return ["trtllm-serve", model, "--max_seq_len", str(length)]

    def to_rope_dict(self, scaling: Scaling, layer: LayerRope, length: int) -> dict[str, Any] | None:
        if isinstance(scaling, DynamicNTK):
            return None if scaling.alpha is None else {"rope_type": "dynamic", "alpha": float(scaling.alpha)}
        return super().to_rope_dict(scaling, layer, length)

    def _interpret(self, config: Config, length: int) -> ModelConfig:
        model_config = configs.from_dict(config)
        check_served_length(model_config, length)  # its table ends at the declared length
        return map_scalings(model_config, lambda layer: self._interpret_layer(layer, model_config, length))

    def _interpret_layer(self, layer: LayerRope, model_config: ModelConfig, length: int) -> Scaling:
        """Return the scaling that the engine computes for one layer type, when it serves `length` tokens."""
        rope_dict, scaling = layer.rope_dict, layer.scaling
        if model_config.model_type == "gpt_oss":  # always YaRN, whatever the type; all four fields are required
            return YaRN(
                factor=require_number(rope_dict, "factor"),
                beta_fast=require_number(rope_dict, "beta_fast"),
                beta_slow=require_number(rope_dict, "beta_slow"),
                original_length=int(require_number(rope_dict, "original_max_position_embeddings")),
            )
        rope_type = str(rope_dict.get("type") or rope_dict.get("rope_type") or "default").lower()
        if rope_type not in _SUPPORTED_TYPES:
            raise InputError("rope_scaling type", rope_type, ", ".join(_SUPPORTED_TYPES))
        if rope_type == "dynamic":  # Hunyuan's; without alpha it is silently ignored
            return DynamicNTK(alpha=float(rope_dict["alpha"])) if rope_dict.get("alpha") else NoScaling()
        if isinstance(scaling, YaRN):
            scales_softmax = model_config.model_type in SOFTMAX_SCALED_MODEL_TYPES
            return dataclasses.replace(
                scaling,
                truncate=True,
                attention_factor=mscale_ratio(rope_dict, scaling.factor),
                mscale=None,
                mscale_all_dim=scaling.mscale_all_dim if scales_softmax else None,
            )
        if isinstance(scaling, LongRoPE):
            lists = read_longrope(rope_dict, layer.rope.original_length, model_config.max_length)
            return with_one_list(lists, use_long=lists.length_ratio(layer.rope, length) > 1)
        return scaling
