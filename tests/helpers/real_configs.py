"""Configurations as published models and public bug reports have them, in tests/real_configs, one folder or file each.

Fields that no report quotes were filled in from the known shape of the model.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

_FOLDER = Path(__file__).parents[1] / "real_configs"


def real_config_path(name: str) -> Path:
    """Return the folder of a config.json, or the .gguf file, with that name."""
    path = _FOLDER / name
    assert path.exists(), f"tests/real_configs has no {name}"
    return path


def real_config_names() -> list[str]:
    """Return the names of all of them."""
    return sorted(path.name for path in _FOLDER.iterdir())


def load_real_config(name: str) -> dict[str, Any]:
    """Return the config.json with that name."""
    return json.loads((real_config_path(name) / "config.json").read_text(encoding="utf-8"))
