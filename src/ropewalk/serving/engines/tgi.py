from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from ropewalk.config import ModelConfig, get_text_config_dict
from ropewalk.errors import InputError
from ropewalk.scaling import Scaling
from ropewalk.scaling.abf import ABF
from ropewalk.scaling.longrope import LongRoPE
from ropewalk.scaling.none import NoScaling
from ropewalk.scaling.ntk import compute_ntk_base
from ropewalk.scaling.yarn import YaRN
from ropewalk.serving.engines.base import Config, with_main_scaling
from ropewalk.serving.engines.folder_engine import FolderEngine
from ropewalk.serving.engines.legacy_config import interpret_legacy_config
from ropewalk.serving.engines.rope_dict import mscale_ratio, read_llama3, read_longrope, require_number

_SUPPORTED_TYPES = "default, linear, dynamic, llama3, yarn, longrope, su, mrope"
# Architectures whose attention multiplies its softmax scale by m(s, mscale_all_dim)^2.
# Source: server/text_generation_server/models/custom_modeling/flash_deepseek_v2_modeling.py and _v3_.
_SOFTMAX_SCALED_MODEL_TYPES = ("deepseek_v2", "deepseek_v3")


class TGI(FolderEngine):
    """Text Generation Inference, which loads through transformers 4 but has its own rotary code."""

    name = "tgi"
    title = "Text Generation Inference"
    version = "06663162b (3.x)"
    sources = (
        "server/text_generation_server/layers/rotary.py",
        "server/text_generation_server/models/flash_causal_lm.py (warmup)",
        "launcher/src/main.rs",
    )
    reads_rope_parameters = False
    transformers_version = 4
    reads_attention_factor = False
    derives_longrope_attention_factor = True
    tokenizer_class = "PreTrainedTokenizerFast"

    def argv(self, model: str, length: int) -> list[str]:
        limits = ["--max-input-tokens", str(length - 1), "--max-total-tokens", str(length)]
        return ["text-generation-launcher", "--model-id", model, *limits]

    def _interpret(self, config: Config, length: int) -> ModelConfig:
        model_config = interpret_legacy_config(config)
        if not model_config.main_layer.rope_dict:
            return model_config
        scaling = self._interpret_main_layer(model_config, get_text_config_dict(config), length)
        return with_main_scaling(model_config, scaling)

    def _interpret_main_layer(self, model_config: ModelConfig, text: Config, length: int) -> Scaling:
        """Return the scaling of `rope_scaling` when the engine serves `length` tokens."""
        rope_dict, rope = model_config.main_layer.rope_dict, model_config.main_layer.rope
        rope_type = rope_dict.get("rope_type") or rope_dict.get("type")
        if rope_type in ("default", "linear", "mrope"):
            return NoScaling()  # linear is accepted, but its factor is never used
        if rope_type == "dynamic":
            # The table only grows, and the warmup computes it for the longest text that is served.
            factor = require_number(rope_dict, "factor")
            length_ratio = max(1.0, length / (model_config.max_length or length))
            return ABF(base=compute_ntk_base(rope, factor * length_ratio - (factor - 1)))
        if rope_type == "llama3":
            return read_llama3(rope_dict)
        if rope_type == "yarn":
            factor = require_number(rope_dict, "factor")
            scales_softmax = model_config.model_type in _SOFTMAX_SCALED_MODEL_TYPES
            return YaRN(
                factor=factor,
                attention_factor=mscale_ratio(rope_dict, factor),
                mscale_all_dim=rope_dict.get("mscale_all_dim") if scales_softmax else None,
                original_length=int(require_number(rope_dict, "original_max_position_embeddings")),
            )
        if rope_type in ("su", "longrope"):
            return self._interpret_longrope(rope_dict, text, model_config.max_length)
        raise InputError("rope_scaling type", rope_type, _SUPPORTED_TYPES)

    def _interpret_longrope(self, rope_dict: Mapping[str, Any], text: Config, declared: int | None) -> LongRoPE:
        """Return LongRoPE with two equal lists. Raises InputError if they differ."""
        lists = read_longrope(rope_dict, text.get("original_max_position_embeddings"), declared)
        if "short_mscale" in rope_dict and "long_mscale" in rope_dict:
            # It multiplies the angles by these two, not cos and sin.
            short_mscale, long_mscale = float(rope_dict["short_mscale"]), float(rope_dict["long_mscale"])
            lists = dataclasses.replace(
                lists,
                short_factor=tuple(divisor / short_mscale for divisor in lists.short_factor),
                long_factor=tuple(divisor / long_mscale for divisor in lists.long_factor),
                factor=None,
                attention_factor=1.0,
            )
        if lists.is_dynamic:
            expected = "equal lists, because it rotates the first tokens of a text by one and later ones by the other"
            raise InputError("short_factor and long_factor", "two lists", expected)
        return lists
