"""Generate src/ropewalk/config/class_defaults.json from the configuration classes of the installed transformers.

    python -m tests.helpers.class_defaults

tests/config/test_class_defaults.py fails when the file is not what this generates.
"""

from __future__ import annotations

import copy
import dataclasses
import json
import re
from typing import Any

import transformers
from tests.helpers.rotary_tables import compute_tables
from transformers import CONFIG_MAPPING

from ropewalk.config import class_defaults
from ropewalk.config.fields import rename_fields

# Fields on which positions, layer types and the KV cache depend.
_RELEVANT_FIELDS = re.compile(
    r"hidden_size|n_embd|d_model|(num_|n_)\w*(heads|head|layers|layer|groups)|kv_channels|\w*head_dim|\w*lora_rank"
    r"|(swa_|sliding_|attention_)?(window|sliding_window)\w*|use_sliding_window|max_window_layers|\w*sliding_windows?"
    r"|(original_)?max_position_embeddings|n_positions|max_seq_len|model_max_length|partial_rotary_factor"
    r"|\w+rope_theta|\w*_interval|\w*every_n\w*|\w*layer_group_size|attention_chunk_size|use_mem_rope|alibi|multi_query"
    r"|position_embedding_type|new_decoder_architecture|attention_k_eq_v|index_\w+|compress_\w+|first_k_dense_replace"
    r"|\w*sliding_window_pattern|block_types|layers_block_type|local_attention|rope_interleave|tie_kv\w*|\w*kv_shared\w*"
)
_PROBE = {"rope_type": "default"}
_BASE = 123_456.0  # a base that no class has by default


def generate_class_defaults() -> dict[str, Any]:
    """Return the content of the file: the defaults of every text architecture, and the text part of all others."""
    architectures: dict[str, Any] = {}
    text_types: dict[str, str] = {}
    for model_type in sorted(CONFIG_MAPPING):
        try:
            config = CONFIG_MAPPING[model_type]()
        except Exception:  # some classes cannot be built without arguments
            continue
        if hasattr(config, "rope_parameters"):
            # Others rotate by positions in an image or in a sound, or have an encoder.
            is_text = type(config).default_rope_type == "default" and hasattr(config, "vocab_size")
            if is_text and not config.is_encoder_decoder:
                architectures[model_type] = _describe(config)
            continue
        text_config = config.get_text_config(decoder=True)
        if text_config is not config and hasattr(text_config, "rope_parameters"):
            text_types[model_type] = text_config.model_type
    return {"transformers": transformers.__version__, "architectures": architectures, "text_types": text_types}


def _describe(config: Any) -> dict[str, Any]:
    fields: dict[str, Any] = {}
    for field in dataclasses.fields(config):
        value = field.default
        if field.default_factory is not dataclasses.MISSING:
            value = field.default_factory()
        if _RELEVANT_FIELDS.fullmatch(field.name) and isinstance(value, int | float | str | list | dict):
            fields[field.name] = value
    description: dict[str, Any] = {"fields": rename_fields(fields)}
    rope_parameters = config.rope_parameters
    nested = {name: value for name, value in rope_parameters.items() if isinstance(value, dict)}
    probe = _build(config, rope_parameters={name: dict(_PROBE) for name in nested} or dict(_PROBE))
    description["rope_theta"] = _collect("rope_theta", (probe or config).rope_parameters)
    given = {"rope_type": "default", "rope_theta": _BASE}
    given_config = _build(config, rope_parameters={name: dict(given) for name in nested} or given)
    if given_config and "qk_rope_head_dim" not in fields:  # else the class computes it from the sizes of the head
        description["partial_rotary_factor"] = _measure_partial_rotary_factor(given_config)
    followed = _build(config, rope_theta=_BASE, global_rope_theta=_BASE, rotary_emb_base=_BASE)
    bases = _collect("rope_theta", followed.rope_parameters) if followed else None
    if isinstance(bases, dict):
        description["fixed_bases"] = sorted(name for name, base in bases.items() if base != _BASE)
    if probe is None or rope_parameters != probe.rope_parameters:
        default = _without_computed_values(rope_parameters)
        for name, rope_dict in (nested or {"": default}).items():
            if rope_dict and bases and (bases.get(name) if nested else bases) == _BASE:
                del (default[name] if nested else default)["rope_theta"]
        description["rope_parameters"] = default
    return {name: value for name, value in description.items() if value not in (None, [], {})}


def _build(config: Any, **fields: Any) -> Any:
    """Return another config of the same class; None if the class refuses the fields."""
    try:
        return type(config)(**fields)
    except Exception:  # classes refuse values with errors of any type
        return None


def _collect(name: str, rope_parameters: dict[str, Any]) -> Any:
    """Return a value of the rope dict, or of each rope dict by layer type."""
    nested = {key: value[name] for key, value in rope_parameters.items() if isinstance(value, dict) and value.get(name)}
    return nested or rope_parameters.get(name)


def _measure_partial_rotary_factor(probe: Any) -> Any:
    """Return the fraction of a head that is rotated if a rope dict does not state it; None for the whole head."""
    stated, measured = _collect("partial_rotary_factor", probe.rope_parameters), _measured_fractions(probe)
    return stated or (measured.get("all", measured) if set(measured.values()) - {1.0} else None)


def _measured_fractions(config: Any) -> dict[str, float]:
    """Return the fraction of a head that the rotary module of a config rotates, by layer type."""
    fractions = {}
    try:
        for layer_type, (inv_freq, _) in compute_tables(config).items():
            sizes = config
            if config.is_heterogeneous:
                sizes = config.per_layer_config[layer_type]
            head_dim = getattr(sizes, "head_dim", None) or config.hidden_size // config.num_attention_heads
            fractions[layer_type] = min(1.0, 2 * len(inv_freq) / head_dim)
    except Exception:  # a module that cannot be built from these fields
        return {}
    return fractions


def _without_computed_values(rope_parameters: dict[str, Any]) -> dict[str, Any]:
    """Return a copy of a rope dict without the fields that Mistral's classes compute from others."""
    computed = {"type", "max_position_embeddings"}
    if "mscale" in rope_parameters:
        computed.add("partial_rotary_factor")
    return {key: copy.deepcopy(value) for key, value in rope_parameters.items() if key not in computed}


def format_class_defaults(content: dict[str, Any]) -> str:
    """Return the text of the file, with one line for each architecture."""

    def format_lines(entries: dict[str, Any]) -> str:
        # Sorted, because transformers builds some of these dicts from sets.
        return ",\n".join(f"{json.dumps(name)}: {json.dumps(value, sort_keys=True)}" for name, value in entries.items())

    version, architectures, text_types = content["transformers"], content["architectures"], content["text_types"]
    return (
        f'{{"transformers": {json.dumps(version)},\n"architectures": {{\n{format_lines(architectures)}\n}},\n'
        f'"text_types": {{\n{format_lines(text_types)}\n}}}}\n'
    )


if __name__ == "__main__":
    transformers.logging.set_verbosity_error()
    class_defaults.TABLE_PATH.write_text(format_class_defaults(generate_class_defaults()), encoding="utf-8")
