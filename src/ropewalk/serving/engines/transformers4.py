from __future__ import annotations

from typing import Any

from ropewalk.config import ModelConfig, get_text_config_dict
from ropewalk.config.architectures import LONGROPE_ONLY_MODEL_TYPES
from ropewalk.errors import InputError
from ropewalk.scaling import Scaling, from_rope_dict
from ropewalk.scaling.yarn import YaRN
from ropewalk.serving.engines.base import Config, with_main_scaling
from ropewalk.serving.engines.folder_engine import FolderEngine
from ropewalk.serving.engines.legacy_config import interpret_legacy_config
from ropewalk.serving.engines.rope_dict import drop_softmax_factor, require_number
from ropewalk.serving.engines.tables import load_table

# Required fields of each rope type. Source: modeling_rope_utils.py.
_REQUIRED_FIELDS = {
    "linear": ("factor",),
    "dynamic": ("factor",),
    "yarn": ("factor",),
    "longrope": (),
    "llama3": ("factor", "original_max_position_embeddings", "low_freq_factor", "high_freq_factor"),
}
# The rope_scaling of configuration classes that have one by default.
# Source: configuration_apertus.py, configuration_gpt_oss.py.
_DEFAULT_ROPE_SCALING: dict[str, dict[str, Any]] = {
    "apertus": {
        "rope_type": "llama3",
        "factor": 8.0,
        "original_max_position_embeddings": 8192,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
    },
    "gpt_oss": {"rope_type": "yarn", "factor": 32.0, "truncate": False, "original_max_position_embeddings": 4096},
}


class Transformers4(FolderEngine):
    """transformers 4, which ignores the `rope_parameters` that version 5 writes."""

    name = "transformers4"
    title = "transformers 4"
    version = "4.57.6"
    sources = (
        "src/transformers/modeling_rope_utils.py",
        "src/transformers/models/llama/configuration_llama.py",
        "src/transformers/models/phi3/configuration_phi3.py",
    )
    reads_rope_parameters = False
    transformers_version = 4
    tokenizer_class = "PreTrainedTokenizerFast"
    requirements = ("torch==2.13.0", "transformers==4.57.6", "accelerate")

    def argv(self, model: str, length: int) -> list[str]:
        return ["transformers", "serve", "--force_model", model]

    def explain(self, config: Config) -> str:
        row = load_table(self.name).find_model_type(config)
        is_ignored = row.get("scaling") == "none" and get_text_config_dict(config).get("rope_scaling")
        return f"its {config.get('model_type')} never reads a scaling" if is_ignored else ""

    def _interpret(self, config: Config, length: int) -> ModelConfig:
        row = load_table(self.name).find_model_type(config)
        model_config = interpret_legacy_config(config)
        if row.get("scaling") == "none":
            return model_config
        rope_dict = model_config.main_layer.rope_dict or _DEFAULT_ROPE_SCALING.get(model_config.model_type, {})
        if not rope_dict:
            return model_config
        rope_type = rope_dict.get("type") or rope_dict.get("rope_type")
        if model_config.model_type in LONGROPE_ONLY_MODEL_TYPES:
            rope_type = "longrope"  # the class of Phi-3 renames yarn and su to longrope
        if rope_type in ("default", "mrope"):
            return model_config
        if rope_type not in _REQUIRED_FIELDS:
            raise InputError("rope_scaling type", rope_type, ", ".join(("default", *_REQUIRED_FIELDS)))
        for key in _REQUIRED_FIELDS[rope_type]:
            require_number(rope_dict, key)
        scaling = self._read_scaling(rope_type, dict(rope_dict), model_config, get_text_config_dict(config))
        if isinstance(scaling, YaRN) and scaling.mscale_all_dim and not row.get("softmax_factor"):
            scaling = drop_softmax_factor(scaling, model_config.main_layer.rope)
        return with_main_scaling(model_config, scaling)

    def _read_scaling(
        self, rope_type: str, rope_dict: dict[str, Any], model_config: ModelConfig, text: Config
    ) -> Scaling:
        """Return the scaling of a `rope_scaling` dict, whose original length each type looks for in another place."""
        declared = model_config.max_length
        if rope_type == "longrope":
            # Only longrope looks for the original length next to the dict, and nowhere else.
            original = text.get("original_max_position_embeddings")
            if original and declared:
                rope_dict["factor"] = max(1.0, declared / original)
            rope_dict["original_max_position_embeddings"] = original or declared
            if rope_dict.get("factor") is None and rope_dict.get("attention_factor") is None:
                raise InputError("factor", None, "factor, attention_factor, or an original and a declared length")
        elif rope_type == "dynamic":
            rope_dict["original_max_position_embeddings"] = declared
            if not model_config.model_type.startswith("hunyuan"):
                rope_dict.pop("alpha", None)
        elif rope_type == "yarn":
            original = rope_dict.get("original_max_position_embeddings")
            rope_dict["original_max_position_embeddings"] = original or declared
        return from_rope_dict({**rope_dict, "rope_type": rope_type}, strict=False)
