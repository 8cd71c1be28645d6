from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from ropewalk import config as configs
from ropewalk.config import LayerRope, ModelConfig
from ropewalk.errors import InputError
from ropewalk.scaling import Scaling
from ropewalk.scaling.longrope import LongRoPE
from ropewalk.scaling.none import NoScaling
from ropewalk.scaling.ntk import DynamicNTK
from ropewalk.scaling.yarn import YaRN
from ropewalk.serving.engines.attention_factors import by_declared, by_mscale, mscale_ratio
from ropewalk.serving.engines.base import Config
from ropewalk.serving.engines.folder_engine import SOFTMAX_SCALED, FolderEngine
from ropewalk.serving.engines.legacy_config import number

_TYPES = ("default", "none", "linear", "dynamic", "longrope", "llama3", "yarn", "mrope")


class TensorRTLLM(FolderEngine):
    """TensorRT-LLM, its PyTorch backend, which is the one that trtllm-serve starts."""

    name = "tensorrt-llm"
    title = "TensorRT-LLM"
    version = "4f4a9f5c4 (main)"
    sources = (
        "tensorrt_llm/_torch/attention_backend/interface.py (RopeParams)",
        "tensorrt_llm/functional.py (RopeEmbeddingUtils)",
        "tensorrt_llm/_torch/models/modeling_utils.py (infer_max_seq_len)",
        "tensorrt_llm/_torch/models/modeling_gpt_oss.py",
    )
    nested = False  # its releases on transformers 4 take the base from rope_parameters, and not the scaling
    tokenizer_class = "PreTrainedTokenizerFast"
    loads = 4
    lists_by_lengths = True

    def to_rope_dict(self, scaling: Scaling, layer: LayerRope, length: int) -> dict[str, Any] | None:
        if isinstance(scaling, DynamicNTK):
            return None if scaling.alpha is None else {"rope_type": "dynamic", "alpha": float(scaling.alpha)}
        if isinstance(scaling, YaRN):
            return by_mscale(scaling, layer)
        return super().to_rope_dict(scaling, layer, length)

    def declared(self, scaling: Scaling, layer: LayerRope, said: Mapping[str, Any], length: int) -> int:
        if said["rope_type"] == "longrope":
            return super().declared(scaling, layer, said, length)
        return max(length, layer.rope.original_length or 0)  # its table ends there, whatever the factor

    def _interpret(self, config: Config, length: int) -> ModelConfig:
        model_config = configs.from_dict(config)
        if model_config.max_length is None or length > model_config.max_length:
            need = f"at least {length:,}: its table ends there"
            raise InputError("TensorRT-LLM: max_position_embeddings", model_config.max_length, need)
        ropes = {
            kind: dataclasses.replace(layer, scaling=_reading(layer, model_config, length))
            for kind, layer in model_config.ropes.items()
        }
        return dataclasses.replace(model_config, ropes=ropes)

    def argv(self, model: str, length: int) -> list[str]:
        return ["trtllm-serve", model, "--max_seq_len", str(length)]


def _reading(layer: LayerRope, model_config: ModelConfig, length: int) -> Scaling:
    said, own = layer.written, layer.scaling
    if model_config.model_type == "gpt_oss":  # YaRN by these four fields, whatever the type
        fields = ("factor", "beta_fast", "beta_slow", "original_max_position_embeddings")
        factor, fast, slow, original = (number("TensorRT-LLM", said, key) for key in fields)
        return YaRN(factor=factor, beta_fast=fast, beta_slow=slow, original_length=int(original))
    rope_type = str(said.get("type") or said.get("rope_type") or "default").lower()
    if rope_type not in _TYPES:
        raise InputError("TensorRT-LLM: rope_scaling type", rope_type, ", ".join(_TYPES))
    if rope_type == "dynamic":  # Hunyuan's alpha; without one it scales nothing, and says nothing
        return DynamicNTK(alpha=float(said["alpha"])) if said.get("alpha") else NoScaling()
    if isinstance(own, YaRN):
        return dataclasses.replace(
            own,
            truncate=True,
            attention_factor=mscale_ratio(said, own.factor),
            mscale=None,
            mscale_all_dim=own.mscale_all_dim if model_config.model_type in SOFTMAX_SCALED else None,
        )
    if isinstance(own, LongRoPE):
        lists = by_declared("TensorRT-LLM", said, layer.rope.original_length, model_config.max_length)
        divisors = lists.long_factor if length > (layer.rope.original_length or 0) else lists.short_factor
        return dataclasses.replace(lists, short_factor=divisors, long_factor=divisors)
    return own
