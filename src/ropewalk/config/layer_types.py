"""Find the type of each layer of a model, such as "full_attention" or "sliding_attention".

A configuration lists the types, or it has a field from which they follow (a pattern of letters or numbers, an interval,
the indices of some layers), or it leaves them to the configuration class of its architecture.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

from ropewalk.config.fields import get_count
from ropewalk.errors import InputError

Config = Mapping[str, Any]

_FULL, _SLIDING, _CHUNKED = "full_attention", "sliding_attention", "chunked_attention"
_LINEAR, _INDEXED, _CONV, _HYBRID = "linear_attention", "indexed_attention", "conv", "hybrid"
_COMPRESSED, _HEAVILY_COMPRESSED = "compressed_sparse_attention", "heavily_compressed_attention"

# Former names of layer types. Source: configuration_utils.py of transformers 5; the last two are in the configurations
# that Qwen3-Next-like and RecurrentGemma models are published with.
_RENAMED = {
    "mamba": _LINEAR, "attention": _FULL, "deepseek_sparse_attention": _INDEXED, "qwen_sparse_attention": _INDEXED,
    "recurrent": _LINEAR, "global_attention": _FULL,
}  # fmt: skip

# The types that letters and numbers of a pattern stand for, by field.
# Sources: configuration_mimo_v2_flash.py, configuration_minimax_m1.py and configuration_deepseek.py as published with
# the models; configuration_nemotron_h.py, configuration_exaone4.py and configuration_deepseek_v4.py of transformers 5.
_PATTERN_FIELDS: dict[str, Mapping[Any, str]] = {
    "hybrid_layer_pattern": {0: _FULL, 1: _SLIDING},
    "attn_type_list": {0: _LINEAR, 1: _FULL},
    "hybrid_override_pattern": {"M": _LINEAR, "E": "moe", "*": _FULL, "-": "mlp"},
    "compress_ratios": {0: _SLIDING, 4: _COMPRESSED, 128: _HEAVILY_COMPRESSED},
    "sliding_window_pattern": {"L": _SLIDING, "G": _FULL, 0: _FULL, 1: _SLIDING},
    "attention_windows": {},  # a window for each layer; 0 for none
}
# Fields with the indices of the layers of one type, and the type of the others.
# Source: configuration_lfm2.py, configuration_bamba.py and configuration_inkling.py of transformers 5.
_INDEX_FIELDS = {
    "full_attn_idxs": (_FULL, _CONV),
    "attn_layer_indices": (_FULL, _LINEAR),
    "local_layer_ids": ("hybrid_sliding", _HYBRID),
}


def is_local(layer_type: str) -> bool:
    """Return whether layers of this type attend only to a window, so that they never see longer distances."""
    if layer_type == "main":  # DeepSeek V4's name for sliding-window layers; its other layer types are compressed
        return True
    return any(word in layer_type for word in ("sliding", "local", "chunked"))


def check_layer_count(layers: int) -> int:
    """Return the number of layers. Raises InputError above 10,000, which would exhaust the memory."""
    if layers > 10_000:
        raise InputError("num_hidden_layers", layers, "at most 10,000")
    return layers


def resolve_layer_types(config: Config) -> list[str]:
    """Return the type of each layer under the names of transformers 5; [] if the number of layers is unknown.

    Args:
        config: the text part of a configuration, with the defaults of its class and the names of transformers.

    Raises InputError for a list or a pattern that is not one.
    """
    listed = config.get("layer_types")
    if listed and (not isinstance(listed, list | tuple) or not all(isinstance(name, str) for name in listed)):
        raise InputError("layer_types", listed, "a list of names, one for each layer")
    layers = check_layer_count(get_count(config, "num_hidden_layers") or len(listed or ()))
    if listed and len(listed) < layers:
        raise InputError("layer_types", f"{len(listed)} names", f"{layers}, one for each layer")
    layer_types = listed or _from_pattern_fields(config, layers) or _from_architecture(config, layers)
    # Lists may go on with the layers that predict further tokens (Step 3.5, DeepSeek V4).
    layer_types = [_RENAMED.get(name, name) for name in layer_types[:layers]]
    replacements = _REPLACED_TYPES.get(str(config.get("model_type")), {})
    return [replacements.get(name, name) for name in layer_types]


def _from_pattern_fields(config: Config, layers: int) -> list[str] | None:
    """Return the types that a field for them states, whatever the architecture; None if there is no such field."""
    for field, types in _PATTERN_FIELDS.items():
        pattern = config.get(field)
        if isinstance(pattern, str | list | tuple) and pattern:
            return _repeat([_type_of(field, item, types) for item in pattern], layers, field)
    for field, (listed_type, other_type) in _INDEX_FIELDS.items():
        indices = config.get(field)
        if isinstance(indices, list | tuple):
            return [listed_type if index in indices else other_type for index in range(layers)]
    linear = config.get("linear_attn_config")
    if isinstance(linear, Mapping) and isinstance(linear.get("full_attn_layers"), list):  # counted from 1
        return [_FULL if index + 1 in linear["full_attn_layers"] else _LINEAR for index in range(layers)]
    sparse = config.get("sparse_attention_config")
    if isinstance(sparse, Mapping) and isinstance(sparse.get("sparse_attention_freq"), list):
        return ["minimax_m3_sparse" if is_sparse else _FULL for is_sparse in sparse["sparse_attention_freq"]]
    return None


def _type_of(field: str, item: object, types: Mapping[Any, str]) -> str:
    if field == "attention_windows":
        return _SLIDING if item else _FULL
    if not isinstance(item, str | int) or item not in types:
        raise InputError(field, item, ", ".join(str(known) for known in types))
    return types[item]


def _repeat(pattern: list[str], layers: int, field: str) -> list[str]:
    """Return the pattern, repeated up to the last layer. Exaone 4 ends with a layer that attends to the whole text."""
    repeated = (pattern * (layers // len(pattern) + 1))[:layers]
    if field == "sliding_window_pattern" and layers > len(pattern):
        repeated[-1] = _FULL
    return repeated


def _from_architecture(config: Config, layers: int) -> list[str]:
    """Return the types that the class of the architecture computes."""
    rule = _LAYER_RULES.get(str(config.get("model_type")))
    if rule is not None:
        return rule(config, layers)
    if isinstance(config.get("sliding_window_pattern"), int):
        return _every("sliding_window_pattern", 0)(config, layers)
    if isinstance(config.get("full_attention_interval"), int):
        return _every("full_attention_interval", 0, other=_LINEAR)(config, layers)
    has_window = config.get("sliding_window") and config.get("use_sliding_window", True)
    if has_window and config.get("max_window_layers") is not None:  # Qwen 2 and 3
        full_layers = config["max_window_layers"]
        return [_SLIDING if isinstance(full_layers, int) and i >= full_layers else _FULL for i in range(layers)]
    return [_SLIDING if has_window else _FULL] * layers


Rule = Callable[[Config, int], list[str]]


def _every(
    field: str, default: int, *, full: str = _FULL, other: str = _SLIDING, first: bool = False, last: bool = False
) -> Rule:
    """Return the rule that one of every n layers attends to the whole text.

    Args:
        field: the field that contains n.
        default: n without that field.
        full, other: the types of that layer and of the others.
        first: whether it is the first of each n layers; by default it is the last.
        last: whether the very last layer attends to the whole text, too.
    """

    def rule(config: Config, layers: int) -> list[str]:
        count = config.get(field, default)
        if not isinstance(count, int) or isinstance(count, bool) or count < 1:
            return [full if count in (None, 0) else other] * layers
        remainder = 0 if first else count - 1
        layer_types = [full if index % count == remainder else other for index in range(layers)]
        return [*layer_types[:-1], full] if last and layers else layer_types

    return rule


def _where(is_full: Callable[[int, int], bool], *, full: str = _FULL, other: str = _SLIDING) -> Rule:
    """Return the rule for a condition on the index of a layer and the number of layers."""
    return lambda config, layers: [full if is_full(index, layers) else other for index in range(layers)]


def _all(layer_type: str) -> Rule:
    return lambda config, layers: [layer_type] * layers


def _unless_windowed(rule: Rule) -> Rule:
    """Return the rule, applied only if the model has a sliding window."""
    return lambda config, layers: rule(config, layers) if config.get("sliding_window") else [_FULL] * layers


def _llama4(config: Config, layers: int) -> list[str]:
    """Layers with a rotary embedding (1 in `no_rope_layers`) attend to chunks."""
    return [_CHUNKED if has_rope else _FULL for has_rope in _no_rope_layers(config, layers)]


def _smollm3(config: Config, layers: int) -> list[str]:
    is_windowed = config.get("use_sliding_window") and config.get("sliding_window")
    return [_FULL if has_rope or not is_windowed else _SLIDING for has_rope in _no_rope_layers(config, layers)]


def _no_rope_layers(config: Config, layers: int) -> Sequence[Any]:
    """Return for each layer whether it has a rotary embedding."""
    stated = config.get("no_rope_layers")
    if isinstance(stated, list) and stated:
        return stated
    interval = get_count(config, "no_rope_layer_interval") or 4
    return [(index + 1) % interval != 0 for index in range(layers)]


def _cohere2_moe(config: Config, layers: int) -> list[str]:
    """The dense layers at the beginning have a pattern of their own."""
    dense = min(layers, get_count(config, "first_k_dense_replace") or 0)
    beginning = _every("prefix_dense_sliding_window_pattern", 1)(config, dense)
    return beginning + _every("sliding_window_pattern", 4)(config, layers - dense)


def _qwen2_moe(config: Config, layers: int) -> list[str]:
    is_windowed, windowed_layers = config.get("use_sliding_window"), config.get("max_window_layers", 28)
    if isinstance(windowed_layers, bool) or not isinstance(windowed_layers, int):
        raise InputError("max_window_layers", windowed_layers, "a whole number")
    is_sliding = [bool(is_windowed) and index % 2 == 0 and index < windowed_layers for index in range(layers)]
    return [_SLIDING if sliding else _FULL for sliding in is_sliding]


def _recurrent_gemma(config: Config, layers: int) -> list[str]:
    blocks = config.get("block_types")
    blocks = blocks if isinstance(blocks, list | tuple) and blocks else ("recurrent", "recurrent", "attention")
    return [_LINEAR if blocks[index % len(blocks)] == "recurrent" else _SLIDING for index in range(layers)]


def _dots3(config: Config, layers: int) -> list[str]:
    is_windowed = config.get("use_sliding_window", True)
    full = _FULL if config.get("use_dsa") is False else _INDEXED
    return [full if not is_windowed or i < 2 or i % 4 == 1 else _SLIDING for i in range(layers)]


def _zamba2(config: Config, layers: int) -> list[str]:
    hybrid: Collection[int] = {*range(6, 48, 6), 47, 51}
    return [_HYBRID if index in hybrid else _LINEAR for index in range(layers)]


def _lara_mini(config: Config, layers: int) -> list[str]:
    return _repeat([_LINEAR, _SLIDING, _LINEAR, _FULL, _SLIDING], layers, "layer_types")


def _lfm3(config: Config, layers: int) -> list[str]:
    return [_FULL if i % 4 == 2 else _SLIDING if i % 4 == 0 and i > 0 else _CONV for i in range(layers)]


# What the configuration class of an architecture computes if a configuration lists no layer types.
# Source: `__post_init__` in configuration_*.py of transformers 5.
_GEMMA_4 = _every("-", 6, last=True)
_EVERY_6 = _every("sliding_window_pattern", 6)
_EVERY_2 = _every("-", 2)
_FIRST_OF_4 = _every("-", 4, first=True)
_COUNTED_FROM_THE_END = _where(lambda index, layers: (layers - 1 - index) % 4 == 0)
_LINEAR_3_OF_4 = _every("full_attention_interval", 4, other=_LINEAR)
_LAYER_RULES: dict[str, Rule] = {
    "afmoe": _every("global_attn_every_n_layers", 4),
    **dict.fromkeys(
        ("axk2", "deepseek_v32", "glm_moe_dsa", "hy_v4", "hy_v4_vl_text", "mistral_large4_text"), _all(_INDEXED)
    ),
    "bailing_hybrid": _every("layer_group_size", 6, other=_LINEAR),
    **dict.fromkeys(("bamba", "granitemoehybrid"), _all(_LINEAR)),
    **dict.fromkeys(("beam", "diffusion_gemma_text", "gemma4_text", "gemma4_unified_text", "neomme"), _GEMMA_4),
    "embedding_gemma2_text": _every("sliding_window_pattern", 6, last=True),
    "cohere2": _every("sliding_window_pattern", 4),
    "cohere2_moe": _cohere2_moe,
    **dict.fromkeys(("cohere_compass_text", "laguna", "mellum", "minimax_m3_vl_text", "step3p5", "lfm2"), _all(_FULL)),
    **dict.fromkeys(("cwm", "granite_swa", "granitemoe_swa"), _FIRST_OF_4),
    "deepseek_v4": _where(
        lambda index, layers: index >= 2 and index % 2 == 1, full=_COMPRESSED, other=_HEAVILY_COMPRESSED
    ),
    "dory": _every("-", 4),
    "dots3_note_text": _dots3,
    **dict.fromkeys(("exaone4", "exaone_moe"), _unless_windowed(_every("sliding_window_pattern", 4))),
    **dict.fromkeys(("falcon_h1", "zaya"), _all(_HYBRID)),
    "flint": _where(lambda index, layers: index < 2 or index % 4 == 1 or index == layers - 1),
    **dict.fromkeys(("gemma2", "gpt_oss", "t5_gemma_module", "vaultgemma"), _EVERY_2),
    **dict.fromkeys(("gemma3_text", "t5gemma2_text", "t5gemma2_decoder"), _EVERY_6),
    **dict.fromkeys(("gemma3n_text", "kolibri1"), _every("-", 5)),
    "lara_mini": _lara_mini,
    "lfm3": _lfm3,
    "llama4_text": _llama4,
    "mimo_v2_flash": _where(lambda index, layers: index == 0 or (index + 1) % 6 == 0),
    "minimax": _where(lambda index, layers: index % 2 == 0, other=_LINEAR),
    **dict.fromkeys(
        ("modernbert", "modernbert-decoder"), _every("global_attn_every_n_layers", 3, first=True)
    ),
    "muse_glimmer_assistant": _all(_SLIDING),
    **dict.fromkeys(("muse_glimmer_text", "muse_spark_text"), _COUNTED_FROM_THE_END),
    "olmo3": _every("-", 4),
    "olmo_hybrid": _every("-", 4, other=_LINEAR),
    "qwen2_moe": _qwen2_moe,
    **dict.fromkeys(("qwen3_5_text", "qwen3_5_moe_text", "qwen3_next"), _LINEAR_3_OF_4),
    "qwen4_exp_text": _every("full_attention_interval", 4, full=_INDEXED, other=_LINEAR),
    "recurrent_gemma": _recurrent_gemma,
    "smollm3": _smollm3,
    "ultrabert": _every("-", 3),
    "unlimited_ocr_text": lambda config, layers: [
        "reference_sliding_attention" if config.get("sliding_window") else _FULL
    ] * layers,
    "zamba2": _zamba2,
}  # fmt: skip
# Architectures whose class changes types that are listed. Source: as above.
_REPLACED_TYPES = {"qwen4_exp_text": {_FULL: _INDEXED}}
