from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from ropewalk.config import LayerRope, ModelConfig
from ropewalk.errors import InputError
from ropewalk.scaling import Scaling
from ropewalk.scaling.linear import Linear
from ropewalk.scaling.llama3 import Llama3
from ropewalk.scaling.none import NoScaling
from ropewalk.scaling.yarn import YaRN
from ropewalk.serving.engines.attention_factors import by_declared
from ropewalk.serving.engines.base import Config
from ropewalk.serving.engines.folder_engine import FolderEngine
from ropewalk.serving.engines.legacy_config import number, scaled, unscaled


class ExLlamaV2(FolderEngine):
    """ExLlamaV2, which takes the declared length for the one that it serves, and passes over types it does not know."""

    name = "exllamav2"
    title = "ExLlamaV2"
    version = "0.3.2"
    sources = ("exllamav2/config.py", "exllamav2/rope.py", "exllamav2/model_init.py")
    nested = False
    spelling = ("rope_type",)  # it refuses a dict with both
    lists_by_lengths = True

    def declared(self, scaling: Scaling, layer: LayerRope, said: Mapping[str, Any], length: int) -> int:
        if said["rope_type"] == "longrope":
            return super().declared(scaling, layer, said, length)
        return max(length, layer.rope.original_length or 0)

    def _interpret(self, config: Config, length: int) -> ModelConfig:
        model_config = unscaled(config, {"gemma3_text": 1_000_000.0})
        declared = model_config.max_length or 2048
        if length > declared:
            need = f"at least {length:,}: it serves what is declared"
            raise InputError(f"{self.title}: max_position_embeddings", model_config.max_length, need)
        said = model_config.ropes[model_config.main].written
        if said.get("type") and said.get("rope_type"):
            raise InputError(f"{self.title}: rope_scaling", "both type and rope_type", "one of the two")
        return scaled(model_config, self._scaling(said, declared, config))

    def _scaling(self, said: Mapping[str, Any], declared: int, config: Config) -> Scaling:
        rope_type = said.get("type") or said.get("rope_type")
        if rope_type == "linear":
            return Linear(number(self.title, said, "factor"))
        if rope_type in ("su", "longrope"):
            lists = by_declared(self.title, said, config.get("original_max_position_embeddings"), declared)
            divisors = lists.short_factor if lists.factor == 1 else lists.long_factor
            return dataclasses.replace(lists, short_factor=divisors, long_factor=divisors)
        if rope_type == "yarn":
            factor = number(self.title, said, "factor")
            if declared <= number(self.title, said, "original_max_position_embeddings"):
                return NoScaling()
            return YaRN(factor=factor, original_length=declared)  # its ramp is that of a model trained on so much
        if rope_type == "llama3":
            fields = ("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings")
            factor, low, high, original = (number(self.title, said, key) for key in fields)
            return Llama3(factor, low, high, original_length=int(original))
        return NoScaling()  # dynamic, and whatever else it does not know

    def argv(self, model: str, length: int) -> list[str]:
        # No -l: the length that it serves is also the one that its scaling is made for.
        return ["python", "examples/chat.py", "-m", model, "-mode", "raw"]
