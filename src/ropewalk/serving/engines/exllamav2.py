from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ropewalk.config import ModelConfig
from ropewalk.errors import InputError
from ropewalk.scaling import Scaling
from ropewalk.scaling.linear import Linear
from ropewalk.scaling.none import NoScaling
from ropewalk.scaling.yarn import YaRN
from ropewalk.serving.engines.base import Config, with_main_scaling
from ropewalk.serving.engines.folder_engine import FolderEngine
from ropewalk.serving.engines.legacy_config import interpret_legacy_config
from ropewalk.serving.engines.load_checks import check_served_length
from ropewalk.serving.engines.rope_dict import read_llama3, read_longrope, require_number, with_one_list

# Default rope_theta by model type; 10,000 for all others. Source: exllamav2/config.py.
_DEFAULT_ROPE_THETA = {"gemma3_text": 1_000_000.0}
_DEFAULT_MAX_LENGTH = 2048


class ExLlamaV2(FolderEngine):
    """ExLlamaV2, which serves the declared length and silently ignores rope types that it does not have."""

    name = "exllamav2"
    title = "ExLlamaV2"
    version = "0.3.2"
    sources = ("exllamav2/config.py", "exllamav2/rope.py", "exllamav2/model_init.py")
    reads_rope_parameters = False
    rope_type_keys = ("rope_type",)  # a dict with both keys is refused
    derives_longrope_attention_factor = True
    unscaled_length_types = ()

    def argv(self, model: str, length: int) -> list[str]:
        # Do not pass the length with -l: it would change the declared length, from which the scaling is computed.
        return ["python", "examples/chat.py", "-m", model, "-mode", "raw"]

    def _interpret(self, config: Config, length: int) -> ModelConfig:
        model_config = interpret_legacy_config(config, _DEFAULT_ROPE_THETA)
        declared = check_served_length(model_config, length, default_length=_DEFAULT_MAX_LENGTH)
        rope_dict = model_config.main_layer.rope_dict
        if rope_dict.get("type") and rope_dict.get("rope_type"):
            raise InputError("rope_scaling", "both type and rope_type", "one of the two")
        return with_main_scaling(model_config, self._read_scaling(rope_dict, declared, config))

    def _read_scaling(self, rope_dict: Mapping[str, Any], declared: int, config: Config) -> Scaling:
        """Return the scaling of `rope_scaling` for a model that declares `declared` tokens."""
        rope_type = rope_dict.get("type") or rope_dict.get("rope_type")
        if rope_type == "linear":
            return Linear(require_number(rope_dict, "factor"))
        if rope_type in ("su", "longrope"):
            lists = read_longrope(rope_dict, config.get("original_max_position_embeddings"), declared)
            return with_one_list(lists, use_long=lists.factor != 1)
        if rope_type == "yarn":
            factor = require_number(rope_dict, "factor")
            if declared <= require_number(rope_dict, "original_max_position_embeddings"):
                return NoScaling()
            # The ramp is computed as if the model had been trained on the declared length.
            return YaRN(factor=factor, original_length=declared)
        if rope_type == "llama3":
            return read_llama3(rope_dict)
        return NoScaling()  # dynamic and every unknown type
