"""Which model it is: a digest of all that answers hang on, so that results are never taken for those of another."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from torch import Tensor

from ropewalk.config import locate
from ropewalk.errors import InputError

_WEIGHTS = ("*.safetensors", "*.bin", "*.gguf")
_BESIDE = (  # configuration and tokenizer
    *("config.json", "generation_config.json", "tokenizer*", "vocab*", "merges.txt", "added_tokens.json"),
    *("special_tokens_map.json", "*.model", "*.tiktoken"),
)
_BLOCK = 2**24  # bytes


def model_digest(model: Any, tokenizer: Any = None) -> str:
    """A digest of weights, configuration and tokenizer, without loading a model that is given by its name.

    Args:
        model: a hub id, a folder, a .gguf file, the built-in name, or a loaded model.
        tokenizer: of a loaded model.

    Returns `sha256:...`, or `commit:...` for a model of the hub. Raises InputError for a name that has no weights.
    """
    if not isinstance(model, str | Path):
        tensors = (_raw(tensor) for _, tensor in sorted(model.state_dict().items()))
        fast = getattr(tokenizer, "backend_tokenizer", None)
        said = [model.config.to_json_string(), repr(model.generation_config), repr(tokenizer)]
        return _sha256(map(str.encode, [*said, fast.to_str() if fast else ""]), tensors)
    path = locate(str(model))
    if path is None:
        return f"commit:{_commit(str(model))}"
    if path.suffix == ".gguf":
        return _sha256(_blocks(path))
    folder = path.parent if path.is_file() else path
    weights = next((found for pattern in _WEIGHTS if (found := sorted(folder.glob(pattern)))), None)
    if weights is None:
        raise InputError("model", str(model), f"a folder with weights ({', '.join(_WEIGHTS)})")
    beside = dict.fromkeys(file for pattern in _BESIDE for file in sorted(folder.glob(pattern)) if file.is_file())
    return _sha256(*map(_blocks, [*weights, *beside]))


def _commit(name: str) -> str:
    """The commit of the hub that this machine holds, or fetches now: it fixes every file."""
    from transformers.utils import cached_file

    try:
        return Path(str(cached_file(name, "config.json"))).parent.name
    except OSError as error:
        raise InputError("model", name, f"a hub id or folder that transformers can load ({error})") from None


def _blocks(file: Path) -> Iterator[bytes]:
    with open(file, "rb") as opened:
        while block := opened.read(_BLOCK):
            yield block


def _raw(tensor: Tensor) -> bytes:
    import torch

    return tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()


def _sha256(*parts: Iterable[bytes]) -> str:
    digest = hashlib.sha256()
    for part in parts:
        for block in part:
            digest.update(block)
    return f"sha256:{digest.hexdigest()}"
