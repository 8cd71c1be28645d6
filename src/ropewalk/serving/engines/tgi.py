from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from ropewalk.config import LayerRope, ModelConfig, text_part
from ropewalk.errors import InputError
from ropewalk.rope import Rope
from ropewalk.scaling import Scaling
from ropewalk.scaling.abf import ABF
from ropewalk.scaling.llama3 import Llama3
from ropewalk.scaling.none import NoScaling
from ropewalk.scaling.ntk import ntk_base
from ropewalk.scaling.yarn import YaRN
from ropewalk.serving.engines.attention_factors import by_declared, by_mscale, mscale_ratio
from ropewalk.serving.engines.base import Config
from ropewalk.serving.engines.folder_engine import FolderEngine
from ropewalk.serving.engines.legacy_config import number, scaled, unscaled


class TGI(FolderEngine):
    """Text Generation Inference, which stands on transformers 4 and turns by code of its own."""

    name = "tgi"
    title = "Text Generation Inference"
    version = "06663162b (3.x)"
    sources = (
        "server/text_generation_server/layers/rotary.py",
        "server/text_generation_server/models/flash_causal_lm.py (warmup)",
        "launcher/src/main.rs",
    )
    nested = False
    loads = 4
    lists_by_lengths = True
    tokenizer_class = "PreTrainedTokenizerFast"

    def to_rope_dict(self, scaling: Scaling, layer: LayerRope, length: int) -> dict[str, Any] | None:
        return by_mscale(scaling, layer) if isinstance(scaling, YaRN) else super().to_rope_dict(scaling, layer, length)

    def _interpret(self, config: Config, length: int) -> ModelConfig:
        model_config = unscaled(config)
        layer = model_config.ropes[model_config.main]
        if not layer.written:
            return model_config
        return scaled(model_config, self._scaling(layer.written, layer.rope, model_config, text_part(config), length))

    def _scaling(
        self, said: Mapping[str, Any], rope: Rope, model_config: ModelConfig, text: Config, length: int
    ) -> Scaling:
        rope_type = said.get("rope_type") or said.get("type")
        declared = model_config.max_length or length
        if rope_type in ("default", "linear", "mrope"):
            return NoScaling()  # linear is known by name, and its factor goes nowhere
        if rope_type == "dynamic":
            # The table only ever grows, and the warm-up makes it as long as any text may be.
            factor = number(self.title, said, "factor")
            length_ratio = max(1.0, length / declared)
            return ABF(base=ntk_base(rope, factor * length_ratio - (factor - 1)))
        if rope_type == "llama3":
            fields = ("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings")
            factor, low, high, original = (number(self.title, said, key) for key in fields)
            return Llama3(factor, low, high, original_length=int(original))
        if rope_type == "yarn":
            factor = number(self.title, said, "factor")
            original = number(self.title, said, "original_max_position_embeddings")
            softened = said.get("mscale_all_dim") if model_config.model_type in ("deepseek_v2", "deepseek_v3") else None
            return YaRN(
                factor=factor, attention_factor=mscale_ratio(said, factor), mscale_all_dim=softened,
                original_length=int(original),
            )  # fmt: skip
        if rope_type in ("su", "longrope"):
            return self._lists(said, text, model_config.max_length)
        allowed = "default, linear, dynamic, llama3, yarn, longrope, su, mrope"
        raise InputError(f"{self.title}: rope_scaling type", rope_type, allowed)

    def _lists(self, said: Mapping[str, Any], text: Config, declared: int | None) -> Scaling:
        lists = by_declared(self.title, said, text.get("original_max_position_embeddings"), declared)
        if "short_mscale" in said and "long_mscale" in said:  # it multiplies the angles by those two
            slowed = {
                which: tuple(each / float(said[f"{which}_mscale"]) for each in getattr(lists, f"{which}_factor"))
                for which in ("short", "long")
            }
            lists = dataclasses.replace(
                lists, short_factor=slowed["short"], long_factor=slowed["long"], factor=None, attention_factor=1.0
            )
        if lists.is_dynamic:  # no scaling at all: the first tokens of a text turn by one list, the others by the other
            allowed = "equal lists: it turns the first tokens of a text by one and the others by the other"
            raise InputError(f"{self.title}: short_factor and long_factor", "two lists", allowed)
        return lists

    def argv(self, model: str, length: int) -> list[str]:
        limits = ["--max-input-tokens", str(length - 1), "--max-total-tokens", str(length)]
        return ["text-generation-launcher", "--model-id", model, *limits]
