"""The defaults of transformers' configuration classes, so that a config.json is understood without importing them.

class_defaults.json is generated from the classes (python -m tests.helpers.class_defaults).
"""

from __future__ import annotations

import functools
import json
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

TABLE_PATH = Path(__file__).with_suffix(".json")


@dataclass(frozen=True)
class ClassDefaults:
    """What the configuration class of one architecture takes for fields that config.json omits.

    Attributes:
        fields: values of plain fields, under the names that transformers uses everywhere.
        rope_theta: the base of a rope dict without one; a dict if it depends on the layer type.
        partial_rotary_factor: the same for the fraction of each head that is rotated.
        rope_parameters: the rope dict of a configuration without any; None if it is not scaled and has these defaults.
        fixed_bases: layer types for which the class ignores the field `rope_theta` beside the rope dicts.
    """

    fields: dict[str, Any]
    rope_theta: float | dict[str, float] = 10_000.0
    partial_rotary_factor: float | dict[str, float] = 1.0
    rope_parameters: dict[str, Any] | None = None
    fixed_bases: Collection[str] = ()


UNKNOWN_CLASS = ClassDefaults(fields={})


def find_class_defaults(model_type: str) -> ClassDefaults | None:
    """Return the defaults of a text architecture; None if the table does not contain it."""
    entry = _table()["architectures"].get(model_type)
    return None if entry is None else ClassDefaults(**entry)


def find_text_type(model_type: str) -> str:
    """Return the architecture of the text part of a multimodal one, or the name itself."""
    text_type: str = _table()["text_types"].get(model_type, model_type)
    return text_type


def known_model_types() -> frozenset[str]:
    """Return the text architectures that have a rotary embedding."""
    return frozenset(_table()["architectures"])


@functools.cache
def _table() -> dict[str, Any]:
    table: dict[str, Any] = json.loads(TABLE_PATH.read_text(encoding="utf-8"))
    return table
