from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any

from ropewalk import config as configs
from ropewalk.config import LayerRope, ModelConfig, text_part
from ropewalk.errors import InputError
from ropewalk.scaling import Scaling
from ropewalk.scaling.linear import Linear
from ropewalk.scaling.longrope import LongRoPE
from ropewalk.scaling.none import NoScaling
from ropewalk.scaling.ntk import DynamicNTK
from ropewalk.scaling.yarn import YaRN, yarn_mscale
from ropewalk.serving.engines.attention_factors import by_declared, mscale_ratio
from ropewalk.serving.engines.base import Candidate, Config
from ropewalk.serving.engines.folder_engine import SOFTMAX_SCALED, FolderEngine, rewritten

# What the TurboMind backend serves; all else falls to the PyTorch backend.
_TURBOMIND = (
    "glm4_moe_lite", "gpt_oss", "internlm2", "internlm3", "llama", "mixtral", "qwen2", "qwen2_moe", "qwen2_vl",
    "qwen2_vl_text", "qwen2_5_vl", "qwen2_5_vl_text", "qwen3", "qwen3_moe", "qwen3_5", "qwen3_5_text", "qwen3_5_moe",
)  # fmt: skip


class LMDeploy(FolderEngine):
    """LMDeploy: TurboMind, its default, for the architectures that has, and its PyTorch backend for all others."""

    name = "lmdeploy"
    title = "LMDeploy"
    version = "0.18.0"
    sources = (
        "lmdeploy/turbomind/models/utils.py",
        "src/turbomind/models/attention_weight.cc",
        "lmdeploy/pytorch/nn/rotary_embedding.py",
        "lmdeploy/pytorch/backends/default/rotary_embedding.py",
    )
    nested = True
    overrides = "--hf-overrides"
    merges = True
    loads = 5
    lists_by_lengths = True

    def candidates(self, config: Config, scaling: Scaling, length: int) -> Iterator[Candidate]:
        for candidate in super().candidates(config, scaling, length):
            yield candidate
            said = text_part(candidate.changes).get("rope_parameters", {})
            if said.get("rope_type") == "yarn":
                yield _for_turbomind(candidate, said)

    def _interpret(self, config: Config, length: int) -> ModelConfig:
        model_config = configs.from_dict(config)
        reading = _turbomind if model_config.model_type in _TURBOMIND else _pytorch
        ropes = {
            kind: dataclasses.replace(layer, scaling=reading(layer, model_config))
            for kind, layer in model_config.ropes.items()
        }
        return dataclasses.replace(model_config, ropes=ropes)

    def argv(self, model: str, length: int) -> list[str]:
        return ["lmdeploy", "serve", "api_server", model, "--session-len", str(length)]


def _for_turbomind(candidate: Candidate, said: Mapping[str, Any]) -> Candidate:
    """YaRN as TurboMind takes it: the declared length is the original one, and what it is over gives the factor."""
    original = said["original_max_position_embeddings"]
    frequencies = {**said, "attention_factor": said.get("attention_factor") or yarn_mscale(said["factor"])}
    smaller = {**frequencies, "original_max_position_embeddings": round(original / said["factor"])}
    return rewritten(candidate, {"rope_parameters": smaller, "max_position_embeddings": original})


def _turbomind(layer: LayerRope, model_config: ModelConfig) -> Scaling:
    said, own, declared = layer.written, layer.scaling, model_config.max_length
    rope_type = str(said.get("rope_type") or said.get("type") or "default")
    if rope_type not in ("default", "mrope", "linear", "dynamic", "yarn", "llama3"):
        allowed = "default, linear, dynamic, yarn, llama3; or --backend pytorch"
        raise InputError("LMDeploy: rope_type", rope_type, allowed)
    if isinstance(own, DynamicNTK):
        return DynamicNTK(own.factor, original_length=declared) if own.factor > 1 else NoScaling()
    if not isinstance(own, YaRN):
        return own
    original = _original(layer, model_config)
    if not declared or not original or declared < original:
        raise InputError("LMDeploy: max_position_embeddings", declared, f"at least the original length, {original}")
    attention_factor = own.attention_factor
    if attention_factor is None:
        both = said.get("mscale") is not None and said.get("mscale_all_dim") is not None
        attention_factor = mscale_ratio(said, own.factor) if both else yarn_mscale(own.factor)
    # Its ramp is that of a model trained on the declared length; the factor that is said counts for nothing.
    return YaRN(
        factor=declared / original,
        beta_fast=own.beta_fast,
        beta_slow=own.beta_slow,
        attention_factor=attention_factor,
        mscale_all_dim=own.mscale_all_dim if model_config.model_type in SOFTMAX_SCALED else None,
        original_length=declared,
    )


def _pytorch(layer: LayerRope, model_config: ModelConfig) -> Scaling:
    said, own = layer.written, layer.scaling
    rope_type = str(said.get("rope_type") or said.get("type") or "default")
    if rope_type not in ("default", "mrope", "fope", "linear", "dynamic", "yarn", "longrope", "su", "llama3"):
        raise InputError("LMDeploy: rope_type", rope_type, "default, linear, dynamic, yarn, longrope, llama3")
    if model_config.model_type == "gemma3_text":
        return _of_gemma3(layer, model_config)
    if isinstance(own, DynamicNTK):
        return DynamicNTK(own.factor, original_length=model_config.max_length)
    if isinstance(own, LongRoPE):
        return by_declared("LMDeploy", said, _original(layer, model_config), model_config.max_length)
    if isinstance(own, YaRN):
        attention_factor = own.attention_factor
        if attention_factor is None and own.mscale_all_dim and own.mscale != 0:
            attention_factor = mscale_ratio(said, own.factor)
        softened = own.mscale_all_dim if model_config.model_type in SOFTMAX_SCALED else None
        natural = yarn_mscale(own.factor) if attention_factor is None else attention_factor
        original = _original(layer, model_config)
        return dataclasses.replace(
            own, attention_factor=natural, mscale=None, mscale_all_dim=softened, original_length=original
        )
    return own


def _original(layer: LayerRope, model_config: ModelConfig) -> int | None:
    """It looks into the dict alone, save where the architecture has a field of its own for it, or the type is old."""
    if model_config.model_type.startswith("phi") or "su" in (layer.written.get("rope_type"), layer.written.get("type")):
        return layer.rope.original_length
    original: int | None = layer.written.get("original_max_position_embeddings", model_config.max_length)
    return original


def _of_gemma3(layer: LayerRope, model_config: ModelConfig) -> Scaling:
    """Whatever the type, it divides by the factor, which it demands."""
    if layer != model_config.ropes[model_config.main]:
        return NoScaling()
    factor = layer.written.get("factor")
    if factor is None:
        raise InputError("LMDeploy: factor", None, "a factor for the layers that see the whole text of Gemma 3")
    return Linear(float(factor))
