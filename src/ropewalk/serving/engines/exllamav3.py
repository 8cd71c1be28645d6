from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from ropewalk import config as configs
from ropewalk.config import LayerRope, ModelConfig, text_part
from ropewalk.errors import InputError
from ropewalk.scaling import Scaling, from_rope_dict
from ropewalk.scaling.longrope import LongRoPE
from ropewalk.scaling.none import NoScaling
from ropewalk.scaling.proportional import Proportional
from ropewalk.scaling.yarn import YaRN, yarn_mscale
from ropewalk.serving.engines.attention_factors import by_declared
from ropewalk.serving.engines.base import Config
from ropewalk.serving.engines.folder_engine import FolderEngine
from ropewalk.serving.engines.legacy_config import unscaled

_TYPES = ("default", "mrope", "linear", "yarn", "longrope", "su", "llama3", "proportional")
_DEEPSEEK = ("deepseek_v3", "kimi_k2", "mistral4")


class ExLlamaV3(FolderEngine):
    """ExLlamaV3, where the declared over the original length gives YaRN's factor and LongRoPE's attention factor."""

    name = "exllamav3"
    title = "ExLlamaV3"
    version = "1.6.5"
    sources = (
        "exllamav3/util/rope.py",
        "exllamav3/model/config.py (read_rope_settings_default)",
        "exllamav3/architecture/deepseek_v3.py",
    )
    nested = False  # it reads both forms, and this one first
    lists_by_lengths = True

    def declared(self, scaling: Scaling, layer: LayerRope, said: Mapping[str, Any], length: int) -> int:
        if said["rope_type"] == "yarn":
            return round(float(said["original_max_position_embeddings"] * said["factor"]))
        if said["rope_type"] == "longrope":
            return super().declared(scaling, layer, said, length)
        return max(length, layer.rope.original_length or 0)

    def _interpret(self, config: Config, length: int) -> ModelConfig:
        text = text_part(config)
        # Of a nested rope_parameters it sees nothing.
        gemma3 = str(text.get("model_type", "")).startswith("gemma3")
        model_config = unscaled(config) if gemma3 else configs.from_dict(config)
        ropes = {
            kind: dataclasses.replace(layer, scaling=_reading(layer, model_config, text))
            for kind, layer in model_config.ropes.items()
        }
        return dataclasses.replace(model_config, ropes=ropes)

    def argv(self, model: str, length: int) -> list[str]:
        cache = -(-length // 256) * 256  # pages of 256 tokens
        return ["python", "examples/chat.py", "-m", model, "-mode", "raw", "-cs", str(cache)]


def _reading(layer: LayerRope, model_config: ModelConfig, text: Config) -> Scaling:
    said, declared = layer.written, model_config.max_length
    rope_type = str(said.get("rope_type") or said.get("type") or "default")
    if rope_type not in _TYPES:
        raise InputError("ExLlamaV3: rope_type", rope_type, ", ".join(_TYPES))
    if rope_type in ("default", "mrope"):
        return NoScaling()
    missing = {"original_max_position_embeddings": 8192} if rope_type == "llama3" else {"factor": 1.0}
    own = from_rope_dict({**missing, **said, "rope_type": rope_type}, strict=False)
    if isinstance(own, Proportional):  # of an old rope_scaling, the part that turns must stand beside it
        beside = text.get("partial_rotary_factor", (text.get("rope_parameters") or {}).get("partial_rotary_factor", 1))
        return Proportional(float(beside), own.factor)
    if isinstance(own, YaRN):
        return _yarn(own, said, model_config)
    if isinstance(own, LongRoPE):
        original = said.get("original_max_position_embeddings", text.get("original_max_position_embeddings"))
        lists = by_declared("ExLlamaV3", said, original, declared)
        divisors = lists.short_factor if lists.factor == 1 else lists.long_factor
        return dataclasses.replace(lists, short_factor=divisors, long_factor=divisors)
    return own


def _yarn(own: YaRN, said: Mapping[str, Any], model_config: ModelConfig) -> YaRN:
    """The factor is the declared over the original length, where there is one: the dict's own counts for nothing."""
    declared, original = model_config.max_length, said.get("original_max_position_embeddings")
    if declared is None:
        raise InputError("ExLlamaV3: max_position_embeddings", None, "the tokens that the model reads")
    factor = declared / original if original else own.factor
    if factor < 1:
        raise InputError("ExLlamaV3: max_position_embeddings", declared, f"at least {original:,}, the original length")
    deepseek = model_config.model_type in _DEEPSEEK
    attention_factor, softened = own.attention_factor, own.mscale_all_dim if deepseek else None
    if attention_factor is None and said.get("llama_4_scaling_beta") and not deepseek:
        attention_factor = 1.0
    if attention_factor is None and own.mscale and own.mscale_all_dim and deepseek:
        attention_factor = yarn_mscale(factor, own.mscale) / yarn_mscale(factor, own.mscale_all_dim)
    return dataclasses.replace(
        own,
        factor=factor,
        attention_factor=attention_factor,
        mscale=None,
        mscale_all_dim=softened,
        original_length=original or declared,
    )
