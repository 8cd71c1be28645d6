"""Configurations that the makers of well-known models have published, one JSON file for each model.

A file contains `model`, the hub id; `source`, the page it was published on; and `config`, the fields of its config.json
that concern positions and the sizes of the KV cache, unchanged. If the model card recommends a scaling for longer
texts, `long` contains its `source`, its `length` in tokens, and the `rope_scaling` to add.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import resources
from typing import Any

from ropewalk import config as configs
from ropewalk.config import ModelConfig

__all__ = ["PublishedModel", "find_published_model", "published_models"]


@dataclass(frozen=True)
class PublishedModel:
    """One published configuration; the attributes are the keys of its file."""

    model: str
    source: str
    config: Mapping[str, Any]
    long: Mapping[str, Any] | None = None

    @property
    def config_for_long_texts(self) -> dict[str, Any] | None:
        """The configuration that the model card recommends for longer texts, or None."""
        return {**self.config, "rope_scaling": self.long["rope_scaling"]} if self.long else None

    @property
    def model_config(self) -> ModelConfig:
        """The published configuration, parsed."""
        return configs.from_dict(self.config)

    def matches(self, model_config: ModelConfig) -> bool:
        """Return whether a parsed configuration equals the published one, or the one for longer texts."""
        published = [configs.from_dict(config) for config in (self.config, self.config_for_long_texts) if config]
        return _position_fields(model_config) in map(_position_fields, published)


@functools.cache
def published_models() -> dict[str, PublishedModel]:
    """Return all published configurations by hub id, sorted."""
    files = [file for file in resources.files(__name__).iterdir() if file.name.endswith(".json")]
    models = [PublishedModel(**json.loads(file.read_text(encoding="utf-8"))) for file in files]
    return {published.model: published for published in sorted(models, key=lambda published: published.model.lower())}


def find_published_model(name: str = "", model_config: ModelConfig | None = None) -> PublishedModel | None:
    """Return the published configuration of a model, found by its name or else by an equal configuration.

    Args:
        name: a hub id, or a path that ends in the name of the model, ignoring case.
        model_config: a parsed configuration; the first published one with the same positions and sizes is returned.
    """
    short_name = name.rstrip("/").split("/")[-1].lower()
    for published in published_models().values():
        if short_name and published.model.split("/")[1].lower() == short_name:
            return published
    for published in published_models().values():
        if model_config is not None and published.matches(model_config):
            return published
    return None


def _position_fields(config: ModelConfig) -> tuple[Any, ...]:
    """Return the values in which two configurations of the same model agree."""
    shape = config.attention
    sizes = (len(shape.layer_types), shape.kv_heads, shape.key_dim) if shape else None
    return config.model_type, config.ropes, config.max_length, sizes
