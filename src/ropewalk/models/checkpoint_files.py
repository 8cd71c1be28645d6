"""Checks of the weight files in a folder, before transformers reads them.

transformers reads whatever an index names, also outside the folder, and unpickles files that are not safetensors.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path, PurePath

from safetensors import SafetensorError, safe_open

from ropewalk.config import read_json_object
from ropewalk.errors import InputError

# The files that transformers looks for, in its order. Source: transformers/modeling_utils.py,
# _get_resolved_checkpoint_files (5.23.0).
_SINGLE_FILE = "model.safetensors"
_INDEX_FILE = "model.safetensors.index.json"
_PICKLED_FILES = ("pytorch_model*.bin", "adapter_model.bin")


def check_weight_files(folder: Path) -> None:
    """Check the weight files of a folder: all there, inside the folder, complete, and in safetensors.

    Raises InputError that names the first file that is not. A folder without weights passes.
    """
    files = list(_safetensors_files(folder))
    for file in files:
        try:
            with safe_open(file, "pt"):  # reads the header and compares it with the size of the file
                pass
        except (OSError, SafetensorError) as error:
            raise InputError("model", str(file), f"a complete safetensors file ({error})") from None
    if not files and not any(folder.glob("*.safetensors")):
        for pickled in (file for pattern in _PICKLED_FILES for file in sorted(folder.glob(pattern))):
            expected = "weights in safetensors; unpickling runs code of the file, so convert it where you trust it"
            raise InputError("model", str(pickled), f"{expected}: load it with transformers and call save_pretrained")


def _safetensors_files(folder: Path) -> Iterator[Path]:
    """Yield the safetensors files that transformers reads from a folder."""
    index = folder / _INDEX_FILE
    if (folder / _SINGLE_FILE).exists():
        yield folder / _SINGLE_FILE
    elif index.exists():
        shard_of_weight = read_json_object(index).get("weight_map")
        if not isinstance(shard_of_weight, dict) or not shard_of_weight:
            raise InputError("model", str(index), "an index whose weight_map lists the file of each weight")
        for shard in dict.fromkeys(map(str, shard_of_weight.values())):
            path = PurePath(shard)
            if path.is_absolute() or ".." in path.parts or path.suffix != ".safetensors":
                raise InputError("weight_map", shard, f"a safetensors file in the folder of {index}")
            yield folder / shard
