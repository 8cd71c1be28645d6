from __future__ import annotations

import dataclasses
from typing import Any

from ropewalk import config as configs
from ropewalk.config import LayerRope, ModelConfig, find_text_config_key
from ropewalk.config.normalize import get_rope_type
from ropewalk.errors import InputError
from ropewalk.scaling import Scaling
from ropewalk.scaling.abf import ABF
from ropewalk.scaling.none import NoScaling
from ropewalk.scaling.ntk import DynamicNTK, compute_ntk_base
from ropewalk.scaling.proportional import Proportional
from ropewalk.scaling.yarn import YaRN, yarn_mscale
from ropewalk.serving.engines.base import Config
from ropewalk.serving.engines.folder_engine import FolderEngine
from ropewalk.serving.engines.load_checks import check_served_length, check_vllm_rope_type
from ropewalk.serving.engines.rope_dict import mscale_pair_ratio, read_deepseek_yarn, read_longrope
from ropewalk.serving.engines.tables import load_table
from ropewalk.serving.engines.trained_config import interpret_as_trained

# Architectures that use DeepSeek's attention, which interprets any scaling as YaRN.
# Source: python/sglang/srt/models/deepseek_v2.py and the models that import from it.
_DEEPSEEK_MODEL_TYPES = (
    "deepseek_v2", "deepseek_v3", "deepseek_v32", "glm4_moe_lite", "glm_moe_dsa", "kimi_k2", "mistral4",
)  # fmt: skip
# For these types SGLang serves max_position_embeddings, for all others factor times that.
# Source: get_context_length in python/sglang/srt/utils/hf_transformers/common.py.
_DECLARE_SCALED_LENGTH = ("yarn", "llama3", "longrope")
_DEFAULT_MAX_LENGTH = 2048
_SUPPORTED_TYPES = "default, linear, dynamic, yarn, longrope, llama3, proportional"


class SGLang(FolderEngine):
    """SGLang, whose rotary classes were copied from vLLM and have changed since."""

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
    reads_rope_parameters = True
    override_option = "--json-model-override-args"
    transformers_version = 5
    reads_longrope_mscales = True
    unscaled_length_types = ("linear", "proportional")

    def argv(self, model: str, length: int) -> list[str]:
        return ["python", "-m", "sglang.launch_server", "--model-path", model, "--context-length", str(length)]

    def merges_overrides(self, config: Config) -> bool:
        return find_text_config_key(config) is None  # the rope dict of a text_config is replaced

    def to_rope_dict(self, scaling: Scaling, layer: LayerRope, length: int) -> dict[str, Any] | None:
        if isinstance(scaling, DynamicNTK) and scaling.alpha is not None:
            return {"rope_type": "dynamic", "alpha": float(scaling.alpha), "factor": 1.0}
        rope_dict = super().to_rope_dict(scaling, layer, length)
        if rope_dict is None or rope_dict["rope_type"] != "yarn" or "attention_factor" not in rope_dict:
            return rope_dict
        # SGLang ignores attention_factor, but multiplies the default one by attn_factor.
        attention_factor = rope_dict.pop("attention_factor")
        for key in ("mscale", "mscale_all_dim"):
            rope_dict.pop(key, None)
        return {**rope_dict, "attn_factor": attention_factor / yarn_mscale(rope_dict["factor"])}

    def explain(self, config: Config) -> str:
        name, kind = self._find_architecture(config)
        if not name:
            names = ", ".join(config.get("architectures") or ())
            return f"it has no model file for {names} and falls back to transformers" if names else ""
        what = {"none": "a scaling", "type": "the factor of a scaling"}.get(kind)
        return f"its {name} never reads {what}" if what else ""

    def _find_architecture(self, config: Config) -> tuple[str, str]:
        """Return the class that SGLang builds, and which scaling it reads (see tables/__init__.py); "" if unknown."""
        table = load_table(self.name)
        name = table.find_class(config)
        return ("", "unknown") if name is None else (name, table.architectures[name]["scaling"])

    def _interpret(self, config: Config, length: int) -> ModelConfig:
        name, kind = self._find_architecture(config)
        if not name and config.get("architectures"):
            model_config = interpret_as_trained(config)  # it runs the model of transformers
            check_served_length(model_config, length, default_length=_DEFAULT_MAX_LENGTH)
            return model_config
        model_config = configs.from_dict(config)
        served_factor, ropes = 1.0, dict(model_config.ropes)
        if not model_config.model_type.startswith("gemma3"):  # for Gemma 3 it uses the rotary module of transformers
            for layer_type, layer in model_config.ropes.items():
                is_read = kind != "none" and (kind != "type" or isinstance(layer.scaling, Proportional))
                scaling = self._interpret_layer(layer, model_config, length) if is_read else NoScaling()
                ropes[layer_type] = dataclasses.replace(layer, scaling=scaling)
                rope_type = layer.rope_dict.get("rope_type", layer.rope_dict.get("type"))
                has_original_length = "original_max_position_embeddings" in layer.rope_dict
                if rope_type not in _DECLARE_SCALED_LENGTH and not has_original_length:
                    served_factor = float(layer.rope_dict.get("factor") or 1.0)
        max_length = check_served_length(
            model_config, length, served_factor=served_factor, default_length=_DEFAULT_MAX_LENGTH
        )
        return dataclasses.replace(model_config, ropes=ropes, max_length=max_length)

    def _interpret_layer(self, layer: LayerRope, model_config: ModelConfig, length: int) -> Scaling:
        """Return the scaling that the engine computes for one layer type, when it serves `length` tokens."""
        rope_dict, scaling, rope = layer.rope_dict, layer.scaling, layer.rope
        rope_type = get_rope_type(rope_dict)
        if rope_type == "default":
            return scaling
        if model_config.model_type in _DEEPSEEK_MODEL_TYPES:
            return _as_deepseek_attention(layer)
        check_vllm_rope_type(rope_type, layer)
        if rope_type in ("linear", "llama3", "mrope"):
            return scaling
        if rope_type == "yarn" and isinstance(scaling, YaRN):
            attention_factor = mscale_pair_ratio(rope_dict, scaling.factor) * float(rope_dict.get("attn_factor", 1.0))
            return dataclasses.replace(scaling, mscale=None, mscale_all_dim=None, attention_factor=attention_factor)
        if rope_type == "longrope":
            return self._interpret_longrope(layer, model_config.max_length, length)
        if rope_type == "dynamic" and isinstance(scaling, DynamicNTK):
            if scaling.alpha is not None:
                return scaling
            # The table is computed once, for factor * max_position_embeddings tokens.
            return ABF(base=compute_ntk_base(rope, scaling.factor * scaling.factor - (scaling.factor - 1)))
        if rope_type == "proportional" and isinstance(scaling, Proportional):
            # Other models than Gemma 4 take partial_rotary_factor from the wrong place. The factor is never read.
            return Proportional(p=scaling.p) if model_config.model_type.startswith("gemma4") else NoScaling()
        raise InputError("rope_type", rope_type, _SUPPORTED_TYPES)

    def _interpret_longrope(self, layer: LayerRope, declared: int | None, length: int) -> Scaling:
        """Return LongRoPE with the attention factor that the engine uses when it serves `length` tokens."""
        original = layer.rope.original_length
        scaling = read_longrope(layer.rope_dict, original, declared)
        mscale = layer.rope_dict.get("long_mscale" if length > (original or 0) else "short_mscale")
        return scaling if mscale is None else dataclasses.replace(scaling, attention_factor=float(mscale))


def _as_deepseek_attention(layer: LayerRope) -> YaRN:
    """Return the YaRN that DeepSeek's attention computes for any scaled rope dict, whatever its type."""
    rope_dict = layer.rope_dict
    scaling = read_deepseek_yarn(rope_dict, float(rope_dict.get("factor", 1.0)))
    assert scaling.attention_factor
    attention_factor = scaling.attention_factor * float(rope_dict.get("attn_factor", 1.0))
    return dataclasses.replace(scaling, attention_factor=attention_factor, original_length=layer.rope.original_length)
