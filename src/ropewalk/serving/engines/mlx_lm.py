from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from ropewalk.config import LayerRope, ModelConfig, text_part
from ropewalk.errors import InputError
from ropewalk.scaling import Scaling
from ropewalk.scaling.linear import Linear
from ropewalk.scaling.llama3 import Llama3
from ropewalk.scaling.longrope import LongRoPE
from ropewalk.scaling.none import NoScaling
from ropewalk.scaling.ntk import DynamicNTK
from ropewalk.scaling.proportional import Proportional
from ropewalk.scaling.yarn import YaRN
from ropewalk.serving.engines.attention_factors import by_declared, by_mscale, mscale_ratio
from ropewalk.serving.engines.base import Config
from ropewalk.serving.engines.folder_engine import SOFTMAX_SCALED, FolderEngine, meaning
from ropewalk.serving.engines.legacy_config import number, scaled, unscaled

# Whose files know `rope_parameters`; the others, Llama's and Qwen 2's among them, do not.
_VERSION_5 = (
    "exaone_moe", "gemma4_text", "glm_moe_dsa", "granitemoehybrid", "laguna", "lfm2", "lfm2_moe", "mellum",
    "minimax_m3_vl", "ministral3", "mistral4", "muse_glimmer", "muse_spark", "olmo_hybrid", "qwen3", "qwen3_5",
    "qwen3_5_text", "spark2_5",
)  # fmt: skip
# The base that the other files take where none is given, if not 10,000;
_BASES = {
    "afm7": 50_000.0,
    "bailing_moe_v3": 6_000_000.0,
    "cohere": 8_000_000.0,
    "cohere2": 50_000.0,
    "falcon_h1": 1e11,
    "gemma3_text": 1_000_000.0,
    "glm4_moe_lite": 1_000_000.0,
    "gpt_oss": 150_000.0,
    "minicpm": 1_000_000.0,
    "minicpm3": 1_000_000.0,
    "mixtral": 1_000_000.0,
    "nemotron-nas": 500_000.0,
    "plamo3": 1_000_000.0,
    "qwen2": 1_000_000.0,
    "qwen2_moe": 1_000_000.0,
    "starcoder2": 100_000.0,
    "youtu_llm": 1_600_000.0,
}
# and those that demand one.
_WITHOUT_BASE = (
    "apertus", "baichuan_m1", "bailing_hybrid", "bailing_moe", "bailing_moe_linear", "dots1", "ernie4_5",
    "ernie4_5_moe", "exaone", "exaone4", "gemma3n", "gemma3n_text", "glm4", "glm4_moe", "granite", "granitemoe",
    "helium", "hunyuan", "kimi_linear", "Klear", "llama4", "llama4_text", "longcat_flash", "mimo_v2_flash", "minimax",
    "olmo3", "qwen3_moe", "qwen3_next", "recurrent_gemma", "solar_open", "stablelm", "telechat3",
)  # fmt: skip
_YARN = ("yarn", "deepseek_yarn", "telechat3-yarn")


class MLXLM(FolderEngine):
    """MLX-LM, where each architecture's file says which fields it knows, and passes over all others."""

    name = "mlx-lm"
    title = "MLX-LM"
    version = "0.32.2"
    sources = ("mlx_lm/models/rope_utils.py", "mlx_lm/models/llama.py", "mlx_lm/models/phi3.py")
    nested = False
    lists_by_lengths = True

    def to_rope_dict(self, scaling: Scaling, layer: LayerRope, length: int) -> dict[str, Any] | None:
        return by_mscale(scaling, layer) if isinstance(scaling, YaRN) else super().to_rope_dict(scaling, layer, length)

    def _interpret(self, config: Config, length: int) -> ModelConfig:
        text = text_part(config)
        if text.get("model_type") in _VERSION_5 and text.get("rope_parameters") and not text.get("rope_scaling"):
            model_config = meaning(config)
            layers = {
                kind: self._scaling(layer, model_config, layer.written) for kind, layer in model_config.ropes.items()
            }
            ropes = {kind: dataclasses.replace(model_config.ropes[kind], scaling=layers[kind]) for kind in layers}
            return dataclasses.replace(model_config, ropes=ropes)
        if text.get("model_type") in _WITHOUT_BASE and text.get("rope_theta") is None:
            raise InputError(f"{self.title}: rope_theta", None, "a number beside the rope dict, which it demands")
        model_config = unscaled(config, _BASES)
        layer = model_config.ropes[model_config.main]
        return (
            scaled(model_config, self._scaling(layer, model_config, layer.written)) if layer.written else model_config
        )

    def _scaling(self, layer: LayerRope, model_config: ModelConfig, said: Mapping[str, Any]) -> Scaling:
        rope_type = str(said.get("type") or said.get("rope_type") or "default")
        declared = model_config.max_length
        if model_config.model_type == "phi3":
            return self._of_phi3(said, layer, declared)
        if rope_type in ("default", "mrope"):
            return NoScaling()
        if rope_type == "longrope":  # the long list, whatever the length
            original = int(number(self.title, said, "original_max_position_embeddings"))
            return _long(by_declared(self.title, said, original, declared))
        if rope_type == "proportional":
            return Proportional(float(said.get("partial_rotary_factor", 1.0)), float(said.get("factor", 1.0)))
        if rope_type not in ("linear", "dynamic", "llama3", *_YARN):
            allowed = "default, linear, dynamic, yarn, longrope, llama3, proportional, mrope"
            raise InputError(f"{self.title}: rope_scaling type", rope_type, allowed)
        factor = number(self.title, said, "factor")
        if rope_type == "linear":
            return Linear(factor)
        if rope_type == "dynamic":
            return DynamicNTK(factor, original_length=declared)
        if rope_type == "llama3":
            low, high = float(said.get("low_freq_factor", 1.0)), float(said.get("high_freq_factor", 4.0))
            return Llama3(factor, low, high, original_length=said.get("original_max_position_embeddings", 8192))
        return YaRN(
            factor=factor,
            beta_fast=float(said.get("beta_fast", 32)),
            beta_slow=float(said.get("beta_slow", 1)),
            attention_factor=mscale_ratio(said, factor),
            mscale_all_dim=said.get("mscale_all_dim") if model_config.model_type in SOFTMAX_SCALED else None,
            original_length=said.get("original_max_position_embeddings", 4096),
        )

    def _of_phi3(self, said: Mapping[str, Any], layer: LayerRope, declared: int | None) -> Scaling:
        if "type" not in said or "long_factor" not in said:
            raise InputError(f"{self.title}: rope_scaling", ", ".join(map(str, said)), "one with type and long_factor")
        if said["type"] not in ("longrope", "su"):
            return NoScaling()  # it warns, and goes on without
        return _long(by_declared(self.title, said, layer.rope.original_length, declared))

    def argv(self, model: str, length: int) -> list[str]:
        return ["mlx_lm.server", "--model", model]


def _long(lists: LongRoPE) -> LongRoPE:
    return dataclasses.replace(lists, short_factor=lists.long_factor)
