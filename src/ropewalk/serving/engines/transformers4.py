from __future__ import annotations

from typing import Any

from ropewalk.config import ModelConfig, text_part
from ropewalk.errors import InputError
from ropewalk.scaling import Scaling, from_rope_dict
from ropewalk.serving.engines.base import Config
from ropewalk.serving.engines.folder_engine import FolderEngine
from ropewalk.serving.engines.legacy_config import number, scaled, unscaled
from ropewalk.serving.engines.load_checks import OF_LISTS

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
    loads = 4
    tokenizer_class = "PreTrainedTokenizerFast"
    requirements = ("torch==2.13.0", "transformers==4.57.6", "accelerate")

    def _interpret(self, config: Config, length: int) -> ModelConfig:
        model_config = unscaled(config)
        said = model_config.ropes[model_config.main].written
        said = said or _BY_CLASS.get(model_config.model_type, {})
        if not said:
            return model_config
        rope_type = said.get("type") or said.get("rope_type")
        if model_config.model_type in OF_LISTS:
            rope_type = "longrope"  # its class says so of yarn and su, too
        if rope_type in ("default", "mrope"):
            return model_config
        if rope_type not in _NEEDED:
            allowed = "default, " + ", ".join(_NEEDED)
            raise InputError(f"{self.title}: rope_scaling type", rope_type, allowed)
        for key in _NEEDED[rope_type]:
            number(self.title, said, key)
        return scaled(model_config, self._scaling(rope_type, dict(said), model_config, text_part(config)))

    def _scaling(self, rope_type: str, said: dict[str, Any], model_config: ModelConfig, text: Config) -> Scaling:
        declared = model_config.max_length
        if rope_type == "longrope":  # of all types this one looks beside the dict, and only there
            original = text.get("original_max_position_embeddings")
            if original and declared:
                said["factor"] = max(1.0, declared / original)
            said["original_max_position_embeddings"] = original or declared
            if said.get("factor") is None and said.get("attention_factor") is None:
                raise InputError(f"{self.title}: factor", None, "factor, attention_factor or two lengths")
        elif rope_type == "dynamic":
            said["original_max_position_embeddings"] = declared
            if not model_config.model_type.startswith("hunyuan"):
                said.pop("alpha", None)
        elif rope_type == "yarn":
            said["original_max_position_embeddings"] = said.get("original_max_position_embeddings") or declared
            if model_config.model_type not in _SOFTENED and said.get("mscale_all_dim"):
                own: Any = from_rope_dict({**said, "rope_type": "yarn"}, strict=False)
                said["attention_factor"] = own.frequencies(model_config.ropes[model_config.main].rope).attention_factor
                said.update(mscale=None, mscale_all_dim=None)
        return from_rope_dict({**said, "rope_type": rope_type}, strict=False)

    def argv(self, model: str, length: int) -> list[str]:
        return ["transformers", "serve", "--force_model", model]
