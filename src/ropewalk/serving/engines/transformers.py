from __future__ import annotations

import dataclasses
from typing import Any

from ropewalk.config import ALL_LAYERS, LayerRope, ModelConfig, text_part
from ropewalk.errors import InputError
from ropewalk.scaling.longrope import LongRoPE
from ropewalk.scaling.none import NoScaling
from ropewalk.scaling.proportional import Proportional
from ropewalk.scaling.yarn import YaRN
from ropewalk.serving.engines.base import Config
from ropewalk.serving.engines.folder_engine import FolderEngine, meaning
from ropewalk.serving.engines.legacy_config import unscaled
from ropewalk.serving.engines.load_checks import OF_MSCALES, WITHOUT_HEAD_DIM

# Whose unscaled rotary modules turn the whole head, whatever partial_rotary_factor says; scaled ones turn that part.
_WHOLE_UNSCALED = {
    "apertus", "arcee", "cohere", "cohere2", "deepseek_v2", "deepseek_v3", "ernie4_5", "ernie4_5_moe", "exaone4",
    "falcon", "gemma", "gemma2", "gemma3_text", "gpt_oss", "granite", "granitemoe", "helium", "hunyuan_v1_dense",
    "llama", "llama4_text", "ministral", "ministral3", "mistral", "mistral4", "mixtral", "olmo", "olmo2", "olmo3",
    "phimoe", "qwen2", "qwen2_5_vl_text", "qwen2_moe", "qwen2_vl_text", "qwen3", "qwen3_moe", "qwen3_vl_text",
    "seed_oss", "smollm3", "starcoder2",
}  # fmt: skip
_UNSCALED = ("ernie4_5_vl_moe_text", "recurrent_gemma")  # whose rotary modules know no scaling


class Transformers(FolderEngine):
    """transformers 5. The methods of this project are defined by its reading; here it is with its slips."""

    name = "transformers"
    title = "transformers"
    version = "5.23.0"
    sources = (
        "src/transformers/modeling_rope_utils.py",
        "src/transformers/models/*/configuration_*.py",
        "src/transformers/models/phimoe/modeling_phimoe.py",
    )
    nested = True
    loads = 5
    requirements = ("torch==2.13.0", "transformers==5.23.0", "accelerate")

    def _interpret(self, config: Config, length: int) -> ModelConfig:
        model_config, text = meaning(config), text_part(config)
        if model_config.model_type == "esm":
            return unscaled({**config, "rope_scaling": None})
        ropes = {kind: self._layer(kind, layer, model_config, text) for kind, layer in model_config.ropes.items()}
        return dataclasses.replace(model_config, ropes=ropes)

    def _layer(self, kind: str, layer: LayerRope, model_config: ModelConfig, text: Config) -> LayerRope:
        own: Any = layer.scaling
        model_type, rope = model_config.model_type, layer.rope
        if model_type in _UNSCALED and not isinstance(own, NoScaling):
            raise InputError(f"{self.title}: rope_type", own.name, f"default: {model_type} turns unscaled")
        if isinstance(own, Proportional) and text.get("qk_rope_head_dim"):
            raise InputError(f"{self.title}: rope_type", own.name, "another type: it takes the whole head")
        if isinstance(own, YaRN):
            if model_type in WITHOUT_HEAD_DIM and text.get("head_dim") is None:
                raise InputError(f"{self.title}: head_dim", None, f"a number: yarn of {model_type} computes with it")
            if kind != ALL_LAYERS:  # it looks for truncate beside the layer types, where no configuration has it
                own = dataclasses.replace(own, truncate=True)
        if isinstance(own, LongRoPE) and model_type in OF_MSCALES:  # the short list, whatever the length
            own = dataclasses.replace(own, long_factor=own.short_factor)
        partial = layer.written.get("partial_rotary_factor") or text.get("partial_rotary_factor")
        whole = isinstance(own, NoScaling) and partial and model_type in _WHOLE_UNSCALED
        if whole or (model_type == "minimax_m3_vl_text" and not partial):  # which passes over rotary_dim
            dim = rope.dim if text.get("qk_rope_head_dim") else round(rope.dim / (partial or 1))
            rope = dataclasses.replace(rope, dim=text.get("head_dim") or dim)
        return dataclasses.replace(layer, rope=rope, scaling=own)

    def argv(self, model: str, length: int) -> list[str]:
        return ["transformers", "serve", model]
