"""The maximum length in tokenizer_config.json, at which some engines truncate texts."""

from __future__ import annotations

from ropewalk.serving.doctor.examined_config import TOKENIZER_CONFIG, ExaminedConfig
from ropewalk.serving.doctor.fault_kinds import Fault, Faults, fault_kind

_FIELD = "model_max_length"
_PATH = (TOKENIZER_CONFIG, _FIELD)


@fault_kind("tokenizer-limit", "suspicious")
def tokenizer_limit(config: ExaminedConfig) -> Faults:
    """The tokenizer's model_max_length is less than the length of the configuration, or less than the target."""
    limit, model_config = (config.tokenizer or {}).get(_FIELD), config.model_config
    if isinstance(limit, bool) or not isinstance(limit, int | float) or model_config is None:
        return
    layer = model_config.main_layer
    needed = config.target or model_config.max_length or 0
    if str(layer.scaling) != "none" and layer.rope.original_length and not config.target:
        needed = max(needed, round(layer.rope.original_length * layer.scaling.extension_factor(layer.rope)))
    if 0 < limit < needed:
        means = "tokenizers warn about longer texts, and some engines use the smaller of both limits"
        yield Fault(_PATH, limit, means, {_PATH: needed})


@fault_kind("tokenizer-not-a-number", "wrong")
def tokenizer_not_a_number(config: ExaminedConfig) -> Faults:
    """The tokenizer's model_max_length is not a number above 0."""
    limit = (config.tokenizer or {}).get(_FIELD)
    is_number = isinstance(limit, int | float) and not isinstance(limit, bool)
    if limit is None or (is_number and limit > 0):
        return
    length = None if config.model_config is None else config.model_config.max_length
    means = "comparing the length of a text with it fails, or is true for every text"
    yield Fault(_PATH, limit, means, {_PATH: config.target or length})
