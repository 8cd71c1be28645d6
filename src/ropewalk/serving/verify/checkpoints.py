"""Prepare the checkpoint that the engine under test loads.

Weights are given in float32 where possible, so that their rounding does not count as a difference.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from ropewalk import config as configs
from ropewalk.serving.engines.base import Engine
from ropewalk.serving.engines.gguf_file import copy_metadata
from ropewalk.serving.verify.reference import ReferenceModel


def prepare_checkpoint(engine: Engine, reference: ReferenceModel) -> str:
    """Return the model to export from, in a format that the engine loads.

    That is the reference model's own name or path, but for engines that load folders, a GGUF file is unpacked to a
    float32 folder. The folder is kept in the reference's cache folder.
    """
    path = configs.locate(reference.model_name)
    if engine.checkpoint_format != "folder" or path is None or path.suffix != ".gguf":
        return reference.model_name
    folder = reference.cache_folder / f"{path.stem}-{reference.digest.removeprefix('sha256:')[:16]}"
    if not (folder / "config.json").exists():
        unfinished = folder / "new"
        reference.model.save_pretrained(unfinished)
        reference.tokenizer.save_pretrained(unfinished)
        # config.json is moved last: a folder that has one is complete.
        for file in sorted(unfinished.iterdir(), key=lambda file: file.name == "config.json"):
            file.rename(folder / file.name)
        unfinished.rmdir()
    return str(folder)


def link_checkpoint(config: Path, checkpoint: Path, out: Path) -> Path:
    """Create the folder `out` with links to `config`, as its config.json, and to all other files of a checkpoint."""
    out.mkdir()
    for file in checkpoint.iterdir():
        if file.is_file() and file.name != "config.json":
            (out / file.name).symlink_to(file.resolve())
    (out / "config.json").symlink_to(config.resolve())
    return out


def convert_gguf_to_float32(source: Path, target: Path) -> Path:
    """Write a GGUF file with the metadata of `source` and all of its tensors in float32."""
    from gguf import GGMLQuantizationType, GGUFReader, GGUFWriter
    from gguf.quants import dequantize

    reader = GGUFReader(source)
    writer = GGUFWriter(target, "")
    copy_metadata(reader, writer)
    for tensor in reader.tensors:
        shape = tensor.shape[::-1].tolist()  # GGUF has the innermost axis first
        num_bytes = 4 * int(np.prod(shape))
        writer.add_tensor_info(tensor.name, shape, np.dtype(np.float32), num_bytes, GGMLQuantizationType.F32)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    for tensor in reader.tensors:
        writer.write_tensor_data(dequantize(tensor.data, tensor.tensor_type).astype(np.float32))
    writer.close()
    return target
