"""The model in the form that an engine is given, with weights in float32: then what differs is not their rounding."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from ropewalk import config as configs
from ropewalk.serving.engines.base import Engine
from ropewalk.serving.engines.gguf_engine import copy_fields
from ropewalk.serving.verify.reference import Reference


def given_to(engine: Engine, reference: Reference) -> str:
    """The model that export starts from: itself, or of a GGUF file a folder for engines that take none."""
    path = configs.locate(reference.name)
    if engine.takes != "folder" or path is None or path.suffix != ".gguf":
        return reference.name
    folder = reference.work / f"{path.stem}-{reference.digest.removeprefix('sha256:')[:16]}"
    if not (folder / "config.json").exists():
        reference.model.save_pretrained(folder / "new")
        reference.tokenizer.save_pretrained(folder / "new")
        for file in sorted((folder / "new").iterdir(), key=lambda file: file.name == "config.json"):
            file.rename(folder / file.name)  # the configuration last: with it, all is there
        (folder / "new").rmdir()
    return str(folder)


def beside_weights(config: Path, model: Path, out: Path) -> Path:
    """A folder with that config.json and all else of the model's folder."""
    out.mkdir()
    for file in model.iterdir():
        if file.is_file() and file.name != "config.json":
            (out / file.name).symlink_to(file.resolve())
    (out / "config.json").symlink_to(config.resolve())
    return out


def float32_copy(source: Path, target: Path) -> Path:
    """A GGUF file with the same metadata and tensors, all of them in float32."""
    from gguf import GGMLQuantizationType, GGUFReader, GGUFValueType, GGUFWriter
    from gguf.quants import dequantize

    reader = GGUFReader(source)
    writer = GGUFWriter(target, "")
    copy_fields(reader, writer, GGUFValueType, {})
    shapes = [tuple(reversed(tensor.shape.tolist())) for tensor in reader.tensors]
    for tensor, shape in zip(reader.tensors, shapes, strict=True):
        size = 4 * int(np.prod(shape))
        writer.add_tensor_info(tensor.name, shape, np.dtype(np.float32), size, GGMLQuantizationType.F32)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    for tensor, shape in zip(reader.tensors, shapes, strict=True):
        writer.write_tensor_data(dequantize(tensor.data, tensor.tensor_type).astype(np.float32).reshape(shape))
    writer.close()
    return target
