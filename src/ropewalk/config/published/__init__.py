"""Configurations that the makers of well-known models have published, one JSON file for each model.

A file contains `model`, the hub id; `source`, the page it was published on; and `config`, the fields of its config.json
that concern positions and the sizes of the KV cache, unchanged. If its makers recommend a scaling for longer texts,
`long` contains the `source`, the `length` in tokens, and the keys to put into the rope dict (`rope_scaling`). Optional
keys of `long` are `other_factors`, which the makers recommend for the same length, and the `max_position_embeddings`
that they declare with it.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import resources
from typing import Any

from ropewalk import config as configs
from ropewalk.config import ModelConfig, find_text_config_key

__all__ = ["PublishedModel", "find_published_model", "published_models"]


@dataclass(frozen=True)
class PublishedModel:
    """One published configuration; the attributes are the keys of its file."""

    model: str
    source: str
    config: Mapping[str, Any]
    long: Mapping[str, Any] | None = None

    @property
    def configs_for_long_texts(self) -> tuple[dict[str, Any], ...]:
        """The configurations that the makers recommend for longer texts; the first one has the main factor.

        Each factor comes with the maximum length that the makers declare with it and, because they also recommend to
        pass only the scaling to a serving engine, with the published one.
        """
        if self.long is None:
            return ()
        scaling, declared = self.long["rope_scaling"], self.long.get("max_position_embeddings")
        scalings = [scaling, *({**scaling, "factor": factor} for factor in self.long.get("other_factors", ()))]
        length_fields = [{"max_position_embeddings": declared}, {}] if declared else [{}]
        return tuple(_apply(self.config, scaling, fields) for scaling in scalings for fields in length_fields)

    @functools.cached_property
    def model_config(self) -> ModelConfig:
        """The published configuration, parsed."""
        return configs.from_dict(self.config)

    def matches(self, model_config: ModelConfig) -> bool:
        """Return whether a parsed configuration equals the published one, or one of those for longer texts."""
        return _get_position_fields(model_config) in self._position_fields

    @functools.cached_property
    def _position_fields(self) -> list[tuple[Any, ...]]:
        published = map(configs.from_dict, (self.config, *self.configs_for_long_texts))
        return [_get_position_fields(model_config) for model_config in published]


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


def _apply(config: Mapping[str, Any], rope_scaling: Mapping[str, Any], fields: Mapping[str, Any]) -> dict[str, Any]:
    """Return a configuration with other keys in its rope dict and other fields beside it, in its text part."""
    key = find_text_config_key(config)
    if key is not None:
        return {**config, key: _apply(config[key], rope_scaling, fields)}
    rope_field = "rope_parameters" if "rope_parameters" in config else "rope_scaling"
    return {**config, **fields, rope_field: {**(config.get(rope_field) or {}), **rope_scaling}}


def _get_position_fields(config: ModelConfig) -> tuple[Any, ...]:
    """Return the values in which two configurations of the same model agree."""
    shape = config.attention
    sizes = shape.layers if shape else None
    return config.model_type, config.ropes, config.max_length, sizes
