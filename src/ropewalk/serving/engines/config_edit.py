"""Edit the fields of a config.json that an export changes.

Changes are a dict of fields of the text part; None removes a field. In a composite configuration they are nested
under the keys that lead to the text part, such as `text_config`.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping
from typing import Any

from ropewalk.config import find_text_config_key, get_text_config_dict
from ropewalk.serving.engines.base import Config

# Rope types whose dicts transformers 5 completes with an original length when it loads them.
_TYPES_WITH_ORIGINAL_LENGTH = ("llama3", "longrope", "yarn")


def apply_changes(config: Config, changes: Config) -> dict[str, Any]:
    """Return a copy of a configuration with changes in its text part."""
    changed: dict[str, Any] = copy.deepcopy(dict(config))
    text: Any = get_text_config_dict(changed)
    for key, value in changes.items():
        if value is None:
            text.pop(key, None)
        else:
            text[key] = value
    return changed


def drop_fields(config: dict[str, Any], names: Iterable[str]) -> dict[str, Any]:
    """Return a configuration without some fields beside its text part."""
    return {key: value for key, value in config.items() if key not in set(names)}


def nest_changes(config: Config, changes: Config) -> Config:
    """Return changes of the text part as changes of the complete configuration."""
    key = find_text_config_key(config)
    return changes if key is None else {key: nest_changes(config[key], changes)}


def drop_removals(changes: Config) -> dict[str, Any]:
    """Return changes without the fields that they remove.

    On a command line, a null would erase a new dict: in transformers 5, `rope_scaling` sets `rope_parameters`.
    """
    kept = {key: value for key, value in changes.items() if value is not None}
    return {key: drop_removals(value) if isinstance(value, Mapping) else value for key, value in kept.items()}


def merge_changes(config: Config, changes: Config) -> dict[str, Any]:
    """Return what transformers 5 has after an engine merges changes into a loaded configuration.

    The new rope dict is merged into the old one key by key, so keys that only the old one has remain.
    """
    text = get_text_config_dict(config)
    old = dict(text.get("rope_scaling") or text.get("rope_parameters") or {})
    if old.get("rope_type", old.get("type")) in _TYPES_WITH_ORIGINAL_LENGTH:
        original = text.get("original_max_position_embeddings") or text.get("max_position_embeddings")
        old.setdefault("original_max_position_embeddings", original)
    merged = {**old, **(changes.get("rope_parameters") or {})}
    for layer_type, rope_dict in merged.items():
        if isinstance(rope_dict, Mapping) and isinstance(old.get(layer_type), Mapping):
            merged[layer_type] = {**old[layer_type], **rope_dict}
    return apply_changes(config, {**changes, "rope_parameters": merged})
