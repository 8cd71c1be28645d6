"""Copy a GGUF file with changes to its metadata and to the tensors that divide the frequencies."""

from __future__ import annotations

from collections.abc import Container
from pathlib import Path
from typing import Any

import numpy as np

from ropewalk.compat.gguf import read_gguf
from ropewalk.config.gguf_header import ROPE_TENSORS
from ropewalk.errors import InputError, MissingPackageError
from ropewalk.serving.engines.base import Config

_PROGRESS_THRESHOLD = 2**30  # bytes; copies of larger files show their progress


def copy_gguf(source: Path, target: Path, changes: Config) -> None:
    """Copy a GGUF file with changes. All other tensors are copied byte for byte, one after the other.

    Args:
        source: a model in one file, in this machine's byte order.
        target: the file to write.
        changes: fields by their full names, or `ROPE_TENSORS` with their values; None removes a field or tensor.

    Raises InputError for a damaged file, the other byte order, or one part of a model in several files, and
    MissingPackageError without the package gguf.
    """
    try:
        import gguf
        from tqdm import tqdm
    except ImportError:
        raise MissingPackageError("ropewalk export", "gguf", "pip install 'ropewalk[hf]'") from None
    try:
        reader = read_gguf(source)
    except (ValueError, KeyError, IndexError) as error:
        raise InputError("model", str(source), f"a complete GGUF file (reading it failed: {error})") from None
    split_count = reader.get_field("split.count")
    if reader.byte_order != "I" or (split_count and split_count.contents() > 1):
        raise InputError("model", str(source), "a model in one file, in this machine's byte order")
    writer = gguf.GGUFWriter(target, "")
    writer.data_alignment = int(reader.alignment)
    copy_metadata(reader, writer, skip=changes)
    value_types = {str: gguf.GGUFValueType.STRING, int: gguf.GGUFValueType.UINT32, float: gguf.GGUFValueType.FLOAT32}
    for name, value in changes.items():
        if value is not None and name not in ROPE_TENSORS:
            writer.add_key_value(name, value, value_types[type(value)])
    tensors = [
        (tensor.name, tensor.data, tensor.tensor_type) for tensor in reader.tensors if tensor.name not in changes
    ]
    for name in ROPE_TENSORS:
        if changes.get(name) is not None:
            tensors.append((name, np.array(changes[name], dtype=np.float32), gguf.GGMLQuantizationType.F32))
    for name, data, tensor_type in tensors:
        writer.add_tensor_info(name, data.shape, data.dtype, data.nbytes, tensor_type)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    is_small = source.stat().st_size < _PROGRESS_THRESHOLD
    for _, data, _ in tqdm(tensors, desc=source.name, unit="tensor", disable=is_small):
        writer.write_tensor_data(data)
    writer.close()


def copy_metadata(reader: Any, writer: Any, skip: Container[str] = ()) -> None:
    """Copy the metadata of a GGUFReader to a GGUFWriter, except the fields in `skip`.

    Empty arrays are left out, because gguf cannot write them.
    """
    from gguf import GGUFValueType

    for name, field in reader.fields.items():
        value_type, element_type = field.types[0], field.types[-1]
        is_array = value_type == GGUFValueType.ARRAY
        if name.startswith("GGUF.") or name in skip or (is_array and not field.data):
            continue
        if element_type == GGUFValueType.STRING:
            # Copy the bytes: strings in a GGUF file are not always valid UTF-8.
            strings = [field.parts[index].tobytes() for index in field.data]
            writer.add_key_value(name, strings if is_array else strings[0], value_type, element_type)
        else:
            writer.add_key_value(name, field.contents(), value_type, element_type)
