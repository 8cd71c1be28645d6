from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from ropewalk.config import ModelConfig
from ropewalk.engines.attention import by_lengths, stretched
from ropewalk.engines.base import Config, Way
from ropewalk.engines.folder import FolderEngine, rewritten, text_part
from ropewalk.engines.version4 import number, scaled, unscaled
from ropewalk.errors import InputError
from ropewalk.scaling import Scaling, from_rope_dict
from ropewalk.scaling.longrope import LongRoPE

_NEEDED = {
    "linear": ("factor",),
    "dynamic": ("factor",),
    "yarn": ("factor",),
    "longrope": (),
    "llama3": ("factor", "original_max_position_embeddings", "low_freq_factor", "high_freq_factor"),
}
# Classes that have a scaling where the file has none.
_BY_CLASS = {
    "apertus": {
        "rope_type": "llama3",
        "factor": 8.0,
        "original_max_position_embeddings": 8192,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
    },
    "gpt_oss": {"rope_type": "yarn", "factor": 32.0, "truncate": False, "original_max_position_embeddings": 4096},
}
_OF_THREE_FIELDS = ("phi3", "phi4_multimodal")  # their configuration refuses any fourth
_SOFTENED = ("deepseek_v3", "longcat_flash")  # whose softmax it multiplies by m(s, mscale_all_dim)^2


class Transformers4(FolderEngine):
    """transformers 4, which knows nothing of the `rope_parameters` that version 5 writes."""

    name = "transformers4"
    title = "transformers 4"
    version = "4.57.6"
    sources = (
        "src/transformers/modeling_rope_utils.py",
        "src/transformers/models/llama/configuration_llama.py",
        "src/transformers/models/phi3/configuration_phi3.py",
    )
    nested = False
    requirements = ("torch==2.13.0", "transformers==4.57.6", "accelerate")

    def ways(self, config: Config, scaling: Scaling, length: int) -> Iterator[Way]:
        three = text_part(config).get("model_type") in _OF_THREE_FIELDS
        for way in super().ways(config, scaling, length):
            said = text_part(way.changes).get("rope_scaling")
            if not three or said is None:
                yield way
            elif "long_factor" in said:
                yield self._of_three(way, said, length)

    def _of_three(self, way: Way, said: dict[str, Any], length: int) -> Way:
        lists = LongRoPE(
            said["short_factor"], said["long_factor"], attention_factor=said["attention_factor"],
            original_length=said["original_max_position_embeddings"],
        )  # fmt: skip
        described = unscaled(way.config)
        chosen = by_lengths(lists, described.ropes[described.main], length) or said
        kept = {"type": "longrope", "short_factor": said["short_factor"], "long_factor": said["long_factor"]}
        original = chosen["original_max_position_embeddings"]
        return rewritten(
            way,
            {
                "rope_scaling": kept,
                "original_max_position_embeddings": original,
                "max_position_embeddings": stretched(chosen),
            },
        )

    def reading(self, config: Config, length: int) -> ModelConfig:
        described = unscaled(config)
        said = described.ropes[described.main].written
        said = said or _BY_CLASS.get(described.model_type, {})
        if not said:
            return described
        rope_type = said.get("type") or said.get("rope_type")
        if described.model_type in _OF_THREE_FIELDS:
            rope_type = "longrope" if rope_type in ("su", "yarn", "longrope") else None
            if rope_type is None or set(said) != {"type", "short_factor", "long_factor"}:
                found = ", ".join(map(str, said))
                raise InputError(f"{self.title}: rope_scaling", found, "type, short_factor and long_factor, no more")
        if rope_type in ("default", "mrope"):
            return described
        if rope_type not in _NEEDED:
            allowed = "default, " + ", ".join(_NEEDED)
            raise InputError(f"{self.title}: rope_scaling type", rope_type, allowed)
        for key in _NEEDED[rope_type]:
            number(self.title, said, key)
        return scaled(described, self._scaling(rope_type, dict(said), described, text_part(config)))

    def _scaling(self, rope_type: str, said: dict[str, Any], described: ModelConfig, text: Config) -> Scaling:
        declared = described.max_length
        if rope_type == "longrope":  # of all types this one looks beside the dict, and only there
            original = text.get("original_max_position_embeddings")
            if original and declared:
                said["factor"] = max(1.0, declared / original)
            said["original_max_position_embeddings"] = original or declared
            if said.get("factor") is None and said.get("attention_factor") is None:
                raise InputError(f"{self.title}: factor", None, "factor, attention_factor or two lengths")
        elif rope_type == "dynamic":
            said["original_max_position_embeddings"] = declared
            if not described.model_type.startswith("hunyuan"):
                said.pop("alpha", None)
        elif rope_type == "yarn":
            said["original_max_position_embeddings"] = said.get("original_max_position_embeddings") or declared
            if described.model_type not in _SOFTENED and said.get("mscale_all_dim"):
                own: Any = from_rope_dict({**said, "rope_type": "yarn"}, strict=False)
                said["attention_factor"] = own.frequencies(described.ropes[described.main].rope).attention_factor
                said.update(mscale=None, mscale_all_dim=None)
        return from_rope_dict({**said, "rope_type": rope_type}, strict=False)

    def command(self, model: str, length: int, changes: Config | None = None) -> str:
        if changes is not None:
            raise InputError("out", None, f"a folder: {self.title} takes its configuration from config.json")
        return f"transformers serve --force_model {model}"
