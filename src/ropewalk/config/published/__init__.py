"""Published configurations: what makers of well-known models say about positions, one JSON file a model.

A file holds `model`, its hub id; `source`, the page it was published on; `config`, the fields of its config.json that
concern positions and the shape of its attention, as they stand there; and where the makers' model card says what to
write for longer texts, `long`: `source`, `length` in tokens, and the `rope_scaling` to add.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from importlib import resources
from typing import Any

from ropewalk import config as configs
from ropewalk.config import ModelConfig

__all__ = ["PublishedModel", "find_published_model", "published_models"]


@dataclass(frozen=True)
class PublishedModel:
    """One model as its makers publish it; the attributes are the keys of its file."""

    model: str
    source: str
    config: Mapping[str, Any]
    long: Mapping[str, Any] | None = None

    @property
    def longer(self) -> dict[str, Any] | None:
        """The configuration that the model card gives for longer texts; None where it gives none."""
        if self.long is None:
            return None
        return {**self.config, "rope_scaling": self.long["rope_scaling"]}

    @property
    def readings(self) -> Iterator[ModelConfig]:
        """What its published configurations mean."""
        for config in (self.config, self.longer):
            if config is not None:
                yield configs.from_dict(config)


@functools.cache
def published_models() -> dict[str, PublishedModel]:
    """All of them, by hub id."""
    files = (file for file in resources.files(__name__).iterdir() if file.name.endswith(".json"))
    found = (PublishedModel(**json.loads(file.read_text(encoding="utf-8"))) for file in files)
    return {each.model: each for each in sorted(found, key=lambda each: each.model.lower())}


def find_published_model(name: str = "", model_config: ModelConfig | None = None) -> PublishedModel | None:
    """The model of that name, or else the first whose positions are published to mean just what is described.

    Args:
        name: a hub id, or a path that ends in the model's name, in either case.
        described: a configuration that was read.
    """
    last = name.rstrip("/").split("/")[-1].lower()
    named = (each for each in published_models().values() if name and each.model.split("/")[1].lower() == last)
    alike = (
        each
        for each in published_models().values()
        if model_config and any(_alike(model_config, own) for own in each.readings)
    )
    return next(named, None) or next(alike, None)


def _alike(one: ModelConfig, other: ModelConfig) -> bool:
    return (
        (one.model_type, one.ropes, one.max_length) == (other.model_type, other.ropes, other.max_length)
        and one.attention is not None
        and other.attention is not None
        and (len(one.attention.layer_types), one.attention.kv_heads, one.attention.key_dim)
        == (len(other.attention.layer_types), other.attention.kv_heads, other.attention.key_dim)
    )
