from __future__ import annotations

import dataclasses
import shlex
from collections.abc import Mapping
from typing import Any

from ropewalk.config import LayerRope, ModelConfig
from ropewalk.engines.attention import by_declared, by_lengths, by_mscale, mscale_ratio, stretched
from ropewalk.engines.base import Config
from ropewalk.engines.folder import SOFTMAX_SCALED, FolderEngine, meaning, text_part
from ropewalk.engines.version4 import number, scaled, unscaled
from ropewalk.errors import InputError
from ropewalk.scaling import Scaling
from ropewalk.scaling.linear import Linear
from ropewalk.scaling.llama3 import Llama3
from ropewalk.scaling.longrope import LongRoPE
from ropewalk.scaling.none import NoScaling
from ropewalk.scaling.ntk import DynamicNTK
from ropewalk.scaling.proportional import Proportional
from ropewalk.scaling.yarn import YaRN

# Whose files know `rope_parameters`; the others, Llama's and Qwen 2's among them, do not.
_VERSION_5 = (
    "exaone_moe", "gemma4_text", "glm_moe_dsa", "granitemoehybrid", "laguna", "lfm2", "lfm2_moe", "mellum",
    "minimax_m3_vl", "ministral3", "mistral4", "olmo_hybrid", "qwen3", "qwen3_5", "qwen3_5_text",
)  # fmt: skip
_YARN = ("yarn", "deepseek_yarn", "telechat3-yarn")


class MLXLM(FolderEngine):
    """MLX-LM, where each architecture's file says which fields it knows, and passes over all others."""

    name = "mlx-lm"
    title = "MLX-LM"
    version = "0.32.2"
    sources = ("mlx_lm/models/rope_utils.py", "mlx_lm/models/llama.py", "mlx_lm/models/phi3.py")
    nested = False

    def own(self, scaling: Scaling, layer: LayerRope, length: int) -> dict[str, Any] | None:
        return by_mscale(scaling, layer) if isinstance(scaling, YaRN) else super().own(scaling, layer, length)

    def lists(self, scaling: LongRoPE, layer: LayerRope, length: int) -> dict[str, Any] | None:
        return by_lengths(scaling, layer, length)

    def declared(self, scaling: Scaling, layer: LayerRope, said: Mapping[str, Any], length: int) -> int:
        if said["rope_type"] == "longrope":
            return stretched(said)
        return super().declared(scaling, layer, said, length)

    def reading(self, config: Config, length: int) -> ModelConfig:
        text = text_part(config)
        if text.get("model_type") in _VERSION_5 and text.get("rope_parameters") and not text.get("rope_scaling"):
            described = meaning(config)
            layers = {kind: self._scaling(layer, described, layer.written) for kind, layer in described.ropes.items()}
            ropes = {kind: dataclasses.replace(described.ropes[kind], scaling=layers[kind]) for kind in layers}
            return dataclasses.replace(described, ropes=ropes)
        described = unscaled(config)
        layer = described.ropes[described.main]
        return scaled(described, self._scaling(layer, described, layer.written)) if layer.written else described

    def _scaling(self, layer: LayerRope, described: ModelConfig, said: Mapping[str, Any]) -> Scaling:
        rope_type = str(said.get("type") or said.get("rope_type") or "default")
        declared = described.max_length
        if described.model_type == "phi3":
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
            mscale_all_dim=said.get("mscale_all_dim") if described.model_type in SOFTMAX_SCALED else None,
            original_length=said.get("original_max_position_embeddings", 4096),
        )

    def _of_phi3(self, said: Mapping[str, Any], layer: LayerRope, declared: int | None) -> Scaling:
        if "type" not in said or "long_factor" not in said:
            raise InputError(f"{self.title}: rope_scaling", ", ".join(map(str, said)), "one with type and long_factor")
        if said["type"] not in ("longrope", "su"):
            return NoScaling()  # it warns, and goes on without
        return _long(by_declared(self.title, said, layer.rope.original_length, declared))

    def command(self, model: str, length: int, changes: Config | None = None) -> str:
        if changes is not None:
            raise InputError("out", None, f"a folder: {self.title} takes its configuration from config.json")
        return shlex.join(["mlx_lm.server", "--model", model])


def _long(lists: LongRoPE) -> LongRoPE:
    return dataclasses.replace(lists, short_factor=lists.long_factor)
