"""The tables of transformers' rotary modules for many configurations of every text architecture.

Only the configuration and its rotary module are built, no model.
"""

from __future__ import annotations

import copy
import functools
import importlib
import inspect
from collections.abc import Iterator
from typing import Any

import numpy as np
from torch import Tensor
from transformers import CONFIG_MAPPING

from ropewalk.config.architectures import ROTARY_SWITCHES
from ropewalk.config.class_defaults import known_model_types

Table = tuple[np.ndarray, float]  # inverse frequencies and attention factor

ORIGINAL_LENGTH, LENGTH = 4096, 16_384
LINEAR = {"rope_type": "linear", "factor": 4.0}
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": ORIGINAL_LENGTH}
LLAMA3 = {**YARN, "rope_type": "llama3", "low_freq_factor": 1.0, "high_freq_factor": 4.0}
DYNAMIC = {"type": "dynamic", "factor": 2.0}
LOCAL_BASES = {"rope_theta": 2e5, "global_rope_theta": 2e5, "rope_local_base_freq": 2e4, "local_rope_theta": 2e4}
LOCAL_BASE_MODEL_TYPES = {"gemma3_text", "gemma3n_text", "modernbert", "modernbert-decoder", "t5gemma2_text"}

_MODELS = "transformers.models"
_BORROWED_MODELS = {  # architectures without a modeling file of their own
    f"{_MODELS}.exaone.configuration_exaone": f"{_MODELS}.llama.configuration_llama",
    f"{_MODELS}.internlm3.configuration_internlm3": f"{_MODELS}.llama.configuration_llama",
    f"{_MODELS}.iquestcoder.configuration_iquestcoder": f"{_MODELS}.llama.configuration_llama",
    f"{_MODELS}.sarvam_mla.configuration_sarvam_mla": f"{_MODELS}.deepseek_v3.configuration_deepseek_v3",
    f"{_MODELS}.sarvam_moe.configuration_sarvam_moe": f"{_MODELS}.glm4_moe.configuration_glm4_moe",
}
# What a config.json may say beside the sizes that its class takes by default.
VARIANTS: dict[str, dict[str, Any]] = {
    "nothing": {},
    "a base": {"rope_theta": 123_456.0},
    "a length": {"max_position_embeddings": LENGTH},
    "version 4, linear": {"rope_theta": 123_456.0, "rope_scaling": LINEAR},
    "version 4, yarn": {"rope_theta": 123_456.0, "rope_scaling": YARN, "max_position_embeddings": LENGTH},
    "version 4, llama3": {"rope_theta": 123_456.0, "rope_scaling": LLAMA3, "max_position_embeddings": LENGTH},
    "version 4, dynamic": {"rope_theta": 123_456.0, "rope_scaling": DYNAMIC, "max_position_embeddings": LENGTH},
    "version 4, without a base": {"rope_scaling": YARN, "max_position_embeddings": LENGTH},
    "version 5": {"rope_parameters": {"rope_theta": 123_456.0, **YARN}, "max_position_embeddings": LENGTH},
    "version 5, without a base": {"rope_parameters": YARN, "max_position_embeddings": LENGTH},
    "a partial factor beside": {"rope_theta": 123_456.0, "partial_rotary_factor": 0.5},
    "a partial factor inside": {"rope_parameters": {"rope_theta": 5e4, "partial_rotary_factor": 0.5}},
    "heads": {"hidden_size": 1024, "num_attention_heads": 8, "num_key_value_heads": 8, "rope_theta": 123_456.0},
}


def iterate_cases(model_type: str) -> Iterator[tuple[str, dict[str, Any], Any, dict[str, Table]]]:
    """Yield the name of a variant, its config.json, the config object of transformers and its tables by layer type.

    Variants that transformers refuses are left out. Tables of all layers have the layer type "all".
    """
    whole: dict[str, int] = {}
    switch = dict([ROTARY_SWITCHES[model_type]]) if model_type in ROTARY_SWITCHES else {}
    for name, variant in variants_of(model_type).items():
        fields = {**switch, **variant}
        raw = {"model_type": model_type, **fields}
        try:
            config = CONFIG_MAPPING[model_type](**copy.deepcopy(fields))
            tables = compute_tables(config)
        except Exception:  # classes and modules refuse values with errors of any type
            continue
        # Modules that rotate the whole head, whatever the fraction, are covered in tests/serving/engines.
        is_ignored = "partial" in name and {key: len(inv_freq) for key, (inv_freq, _) in tables.items()} == whole
        if name == "a base":
            whole = {key: len(inv_freq) for key, (inv_freq, _) in tables.items()}
        if tables and not is_ignored:
            yield name, raw, config, tables


def variants_of(model_type: str) -> dict[str, dict[str, Any]]:
    """Return the variants, with those that only the architectures with several layer types have."""
    try:
        rope_parameters = CONFIG_MAPPING[model_type]().rope_parameters
    except Exception:
        return {}
    nested = {name: value for name, value in rope_parameters.items() if isinstance(value, dict)}
    if not nested:
        return VARIANTS
    kept: dict[str, dict[str, float]] = {}
    for name, rope_dict in nested.items():
        fraction = rope_dict.get("partial_rotary_factor")
        is_rotated = fraction is not None and rope_dict["rope_type"] == "default"  # else an option of the scaling
        kept[name] = {"partial_rotary_factor": fraction} if is_rotated else {}
    without = {name: {"rope_type": "default", **kept[name]} for name in nested}
    by_layer_type = {name: {**without[name], "rope_theta": 1e4 * (index + 2)} for index, name in enumerate(nested)}
    scaled = {name: {**LINEAR, **kept[name], "rope_theta": 3e4} for name in nested}
    by_name = {
        "by layer type": {"rope_parameters": by_layer_type},
        "by layer type, scaled": {"rope_parameters": scaled},
        "by layer type, without a base": {"rope_parameters": without},
    }
    if model_type in LOCAL_BASE_MODEL_TYPES:
        by_name["local bases"] = LOCAL_BASES
    return {**VARIANTS, **by_name}


def compute_tables(config: Any) -> dict[str, Table]:
    """Return what the rotary module of a config computes for a short text, by layer type; {} without one."""
    module_class = _find_rotary_class(type(config))
    if module_class is None:
        return {}
    module = module_class(config)
    if isinstance(getattr(module, "inv_freq", None), Tensor):
        return {"all": (module.inv_freq.double().numpy(), float(module.attention_scaling))}
    suffix = "_original_inv_freq"
    names = [name.removesuffix(suffix) for name, _ in module.named_buffers() if name.endswith(suffix)]
    return {
        name: (
            getattr(module, f"{name}_inv_freq").double().numpy(),
            float(getattr(module, f"{name}_attention_scaling")),
        )
        for name in names
    }


@functools.cache
def _find_rotary_class(config_class: type) -> type | None:
    """Return the rotary class of the text decoder in the modeling file of a config class."""
    package = _BORROWED_MODELS.get(config_class.__module__, config_class.__module__)
    modeling = importlib.import_module(package.replace(".configuration_", ".modeling_"))
    candidates = []
    for name, member in vars(modeling).items():
        if not name.endswith("RotaryEmbedding") or not inspect.isclass(member):
            continue
        parameters = inspect.signature(member.__init__).parameters
        if "config" not in parameters:
            continue
        annotation = parameters["config"].annotation
        if config_class.__name__ in (annotation, getattr(annotation, "__name__", None)):
            return member
        if not any(word in name for word in ("Vision", "Audio", "Encoder")):
            candidates.append(member)
    return candidates[0] if candidates else None


def all_model_types() -> list[str]:
    """Return the text architectures of transformers that have a rotary embedding."""
    return sorted(known_model_types())
