"""Digests that identify a model, so that stored results are never attributed to another model."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ropewalk.config import locate, unloadable_model_error
from ropewalk.errors import InputError

_WEIGHT_PATTERNS = ("*.safetensors", "*.bin", "*.gguf")
_CONFIG_AND_TOKENIZER_PATTERNS = (
    *("config.json", "generation_config.json", "tokenizer*", "vocab*", "merges.txt", "added_tokens.json"),
    *("special_tokens_map.json", "*.model", "*.tiktoken"),
)
_BLOCK_SIZE = 2**24  # bytes


def model_digest(model: Any, tokenizer: Any = None) -> str:
    """Return a digest of the weights, the configuration and the tokenizer of a model.

    A model given by name is hashed file by file and never loaded.

    Args:
        model: a hub id, a folder, a .gguf file, a built-in name, or a loaded model.
        tokenizer: the tokenizer of a loaded model; ignored for a name.

    Returns `sha256:...`, or `commit:...` for a hub id. Raises InputError for a folder without weights and for a name
    that cannot be found.
    """
    if not isinstance(model, str | Path):
        return _loaded_model_digest(model, tokenizer)
    path = locate(str(model))
    if path is None:
        return f"commit:{_hub_commit(str(model))}"
    if path.suffix == ".gguf":
        return _sha256(_read_blocks(path))
    return _folder_digest(path.parent if path.is_file() else path)


def tensor_bytes(tensor: Tensor) -> bytes:
    """Return the raw content of a tensor of any dtype and device."""
    return tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()


def _loaded_model_digest(model: Any, tokenizer: Any) -> str:
    fast_tokenizer = getattr(tokenizer, "backend_tokenizer", None)
    texts = [
        model.config.to_json_string(),
        repr(model.generation_config),
        repr(tokenizer),
        fast_tokenizer.to_str() if fast_tokenizer else "",
    ]
    weights = (tensor_bytes(tensor) for _, tensor in sorted(model.state_dict().items()))
    return _sha256((text.encode() for text in texts), weights)


def _folder_digest(folder: Path) -> str:
    for pattern in _WEIGHT_PATTERNS:  # the formats that transformers prefers come first
        files = sorted(folder.glob(pattern))
        if files:
            break
    else:
        raise InputError("model", str(folder), f"a folder with weights ({', '.join(_WEIGHT_PATTERNS)})")
    for pattern in _CONFIG_AND_TOKENIZER_PATTERNS:
        files += [file for file in sorted(folder.glob(pattern)) if file.is_file() and file not in files]
    return _sha256(*(_read_blocks(file) for file in files))


def _hub_commit(name: str) -> str:
    """Return the commit of the hub repository in the local cache, downloading config.json if it is not there."""
    from transformers.utils import cached_file

    try:
        return Path(str(cached_file(name, "config.json"))).parent.name
    except OSError as error:
        raise unloadable_model_error(name, error) from None


def _read_blocks(file: Path) -> Iterator[bytes]:
    with open(file, "rb") as opened:
        while block := opened.read(_BLOCK_SIZE):
            yield block


def _sha256(*parts: Iterable[bytes]) -> str:
    digest = hashlib.sha256()
    for part in parts:
        for block in part:
            digest.update(block)
    return f"sha256:{digest.hexdigest()}"
