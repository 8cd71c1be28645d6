"""Which weights a model has: a digest, so that results are never taken for those of another model."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

from torch import Tensor

from ropewalk.config import locate
from ropewalk.errors import InputError

_WEIGHTS = ("*.safetensors", "*.bin", "*.gguf")
_BLOCK = 2**24  # bytes


def weights_digest(model: Any) -> str:
    """A digest of the weights, without loading a model that is given by its name.

    Args:
        model: a hub id, a folder, a .gguf file, the built-in name, or a loaded model.

    Returns `sha256:...` over the weights' files or tensors, or `commit:...` for a model of the hub. Raises InputError
    for a name that has no weights.
    """
    if not isinstance(model, str | Path):
        return _sha256(_raw(tensor) for _, tensor in sorted(model.state_dict().items()))
    path = locate(str(model))
    if path is None:
        return f"commit:{_commit(str(model))}"
    files = [path] if path.suffix == ".gguf" else []
    folder = path.parent if path.is_file() else path
    for pattern in _WEIGHTS:
        files = files or sorted(folder.glob(pattern))
    if not files:
        raise InputError("model", str(model), f"a folder with weights ({', '.join(_WEIGHTS)})")
    return _sha256(block for file in files for block in _blocks(file))


def _commit(name: str) -> str:
    """The commit of the hub that this machine holds, or fetches now: it fixes the weights."""
    from transformers.utils import cached_file

    try:
        return Path(str(cached_file(name, "config.json"))).parent.name
    except OSError as error:
        raise InputError("model", name, f"a hub id or folder that transformers can load ({error})") from None


def _blocks(file: Path) -> Any:
    with open(file, "rb") as opened:
        while block := opened.read(_BLOCK):
            yield block


def _raw(tensor: Tensor) -> bytes:
    import torch

    return tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()


def _sha256(blocks: Any) -> str:
    digest = hashlib.sha256()
    for block in blocks:
        digest.update(block)
    return f"sha256:{digest.hexdigest()}"
