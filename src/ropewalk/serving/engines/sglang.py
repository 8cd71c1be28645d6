from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from ropewalk import config as configs
from ropewalk.config import LayerRope, ModelConfig
from ropewalk.errors import InputError
from ropewalk.scaling import Scaling
from ropewalk.scaling.abf import ABF
from ropewalk.scaling.longrope import LongRoPE
from ropewalk.scaling.none import NoScaling
from ropewalk.scaling.ntk import DynamicNTK, ntk_base
from ropewalk.scaling.proportional import Proportional
from ropewalk.scaling.yarn import YaRN, yarn_mscale
from ropewalk.serving.engines.attention_factors import by_declared, mscale_ratio
from ropewalk.serving.engines.base import Config
from ropewalk.serving.engines.folder_engine import FolderEngine

# Whose attention is DeepSeek's: any scaling at all is read as YaRN there.
_DEEPSEEK = ("deepseek_v2", "deepseek_v3", "deepseek_v32", "glm4_moe_lite", "glm_moe_dsa", "kimi_k2", "mistral4")
_DECLARE_WHAT_THEY_REACH = ("yarn", "llama3", "longrope")


class SGLang(FolderEngine):
    """SGLang, whose rotary classes come from vLLM and have gone their own way since."""

    name = "sglang"
    title = "SGLang"
    version = "0.5.23"
    sources = (
        "python/sglang/srt/layers/rotary_embedding/",
        "python/sglang/srt/models/llama.py",
        "python/sglang/srt/models/deepseek_v2.py",
        "python/sglang/srt/models/gemma3_causal.py",
        "python/sglang/srt/utils/hf_transformers/common.py (get_context_length)",
    )
    nested = True
    overrides = "--json-model-override-args"
    merges = True
    loads = 5

    def to_rope_dict(self, scaling: Scaling, layer: LayerRope, length: int) -> dict[str, Any] | None:
        if isinstance(scaling, DynamicNTK) and scaling.alpha is not None:
            return {"rope_type": "dynamic", "alpha": float(scaling.alpha), "factor": 1.0}
        if isinstance(scaling, LongRoPE):
            return self.lists(scaling, layer, length)
        return _told(super().to_rope_dict(scaling, layer, length))

    def lists(self, scaling: LongRoPE, layer: LayerRope, length: int) -> dict[str, Any] | None:
        said = scaling.rope_parameters(layer.rope)
        return said and {**said, "short_mscale": said["attention_factor"], "long_mscale": said["attention_factor"]}

    def declared(self, scaling: Scaling, layer: LayerRope, said: Mapping[str, Any], length: int) -> int:
        if "alpha" in said:
            return length  # its table ends there
        return super().declared(scaling, layer, said, length)

    def _interpret(self, config: Config, length: int) -> ModelConfig:
        model_config = configs.from_dict(config)
        grown = 1.0
        ropes = {}
        for kind, layer in model_config.ropes.items():
            scaling = layer.scaling
            if not model_config.model_type.startswith("gemma3"):  # it reads those as transformers does
                scaling = _reading(layer, model_config, length)
                rope_type = layer.written.get("rope_type", layer.written.get("type"))
                held = "original_max_position_embeddings" in layer.written  # by which it knows what is declared
                if rope_type not in _DECLARE_WHAT_THEY_REACH and not held:
                    grown = float(layer.written.get("factor") or 1.0)
            ropes[kind] = dataclasses.replace(layer, scaling=scaling)
        accepted = int((model_config.max_length or 2048) * grown)
        if length > accepted:
            need = f"at least {length / grown:,.0f}, to serve {length:,} tokens"
            raise InputError("SGLang: max_position_embeddings", model_config.max_length, need)
        return dataclasses.replace(model_config, ropes=ropes, max_length=accepted)

    def argv(self, model: str, length: int) -> list[str]:
        return ["python", "-m", "sglang.launch_server", "--model-path", model, "--context-length", str(length)]


def _told(said: dict[str, Any] | None) -> dict[str, Any] | None:
    """`attn_factor`, which multiplies what follows from the factor, in the place of `attention_factor`."""
    if said is None or said["rope_type"] != "yarn" or "attention_factor" not in said:
        return said
    kept = {key: value for key, value in said.items() if key not in ("attention_factor", "mscale", "mscale_all_dim")}
    return {**kept, "attn_factor": said["attention_factor"] / yarn_mscale(said["factor"])}


def _reading(layer: LayerRope, model_config: ModelConfig, length: int) -> Scaling:
    said, own, rope = layer.written, layer.scaling, layer.rope
    rope_type = str(said.get("rope_type") or said.get("type") or "default")
    if rope_type == "default":
        return own
    if model_config.model_type in _DEEPSEEK:
        factor = float(said.get("factor", 1.0))
        return YaRN(
            factor=factor,
            beta_fast=float(said.get("beta_fast", 32)),
            beta_slow=float(said.get("beta_slow", 1)),
            attention_factor=mscale_ratio(said, factor) * float(said.get("attn_factor", 1.0)),
            mscale_all_dim=said.get("mscale_all_dim") or None,
            original_length=rope.original_length,
        )
    if said.get("mrope_section") and rope_type not in ("yarn", "mrope"):
        raise InputError("SGLang: rope_type", rope_type, "default or yarn: no other reads mrope_section")
    if rope_type in ("linear", "llama3", "mrope"):
        return own
    if rope_type == "yarn" and isinstance(own, YaRN):
        both = said.get("mscale") is not None and said.get("mscale_all_dim") is not None
        natural = mscale_ratio(said, own.factor) if both else yarn_mscale(own.factor)
        attention_factor = natural * float(said.get("attn_factor", 1.0))
        return dataclasses.replace(own, mscale=None, mscale_all_dim=None, attention_factor=attention_factor)
    if rope_type == "longrope":
        if rope.layout == "interleaved":
            raise InputError("SGLang: rope_type", rope_type, "another type for interleaved pairs")
        lists = by_declared("SGLang", said, rope.original_length, model_config.max_length)
        mscale = said.get("long_mscale" if length > (rope.original_length or 0) else "short_mscale")
        return lists if mscale is None else dataclasses.replace(lists, attention_factor=float(mscale))
    if rope_type == "dynamic" and isinstance(own, DynamicNTK):
        if own.alpha is not None:
            return own
        # Its table is made once, for factor x max_position_embeddings tokens.
        return ABF(base=ntk_base(rope, own.factor * own.factor - (own.factor - 1)))
    if rope_type == "proportional" and isinstance(own, Proportional):
        # Outside of Gemma 4 it looks for the part that turns beside the dict; nowhere for the factor.
        return Proportional(p=own.p) if model_config.model_type.startswith("gemma4") else NoScaling()
    allowed = "default, linear, dynamic, yarn, longrope, llama3, proportional"
    raise InputError("SGLang: rope_type", rope_type, allowed)
