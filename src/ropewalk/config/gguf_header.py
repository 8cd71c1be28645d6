"""Read the metadata and the rope tensors from the header of a GGUF file.

The header is parsed here, without llama.cpp or the `gguf` package, so that it takes milliseconds. Counts in a corrupt
file can be arbitrarily large: nothing is allocated by an unchecked count, and every read is checked against the size
of the file. The format is defined in docs/gguf.md of the ggml repository.
"""

from __future__ import annotations

import math
import mmap
import struct
from pathlib import Path
from typing import Any

from ropewalk.errors import InputError

# Tensors that divide the inverse frequencies, dim/2 float32 numbers each.
ROPE_FREQS = "rope_freqs.weight"
ROPE_FACTORS_SHORT, ROPE_FACTORS_LONG = "rope_factors_short.weight", "rope_factors_long.weight"
ROPE_TENSORS = (ROPE_FREQS, ROPE_FACTORS_SHORT, ROPE_FACTORS_LONG)

# Value types of the metadata: struct formats of the numbers, and the two other types.
_NUMBER_FORMATS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
_STRING_TYPE, _ARRAY_TYPE = 8, 9
_FLOAT32_TENSOR_TYPE = 0

_MAX_NAME_BYTES, _MAX_STRING_BYTES, _MAX_LIST_ITEMS = 2**16 - 1, 2**24, 2**22

Fields = dict[str, Any]
Divisors = dict[str, tuple[float, ...]]


def read_gguf_header(path: str | Path) -> tuple[Fields, Divisors]:
    """Read the header of a GGUF file.

    Returns the metadata fields by name, without those of the tokenizer, and the tensors of `ROPE_TENSORS` that the file
    contains, by name. Raises InputError for a file that is missing or corrupt.
    """
    try:
        with open(path, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            return _HeaderReader(data).read()
    except (ValueError, struct.error, OSError, OverflowError) as error:
        raise InputError("model", str(path), f"a complete GGUF file (reading it failed: {error})") from None


class _HeaderReader:
    """Reads a GGUF file of version 2 or 3 sequentially. Raises ValueError or struct.error for corrupt content.

    Attributes:
        data: the bytes of the file.
        offset: where the next value starts.
        byte_order: "<" or ">", as in struct formats.
    """

    def __init__(self, data: mmap.mmap) -> None:
        self.data, self.offset = data, 4
        if data[:4] != b"GGUF":
            raise ValueError("it does not begin with GGUF")
        # The version is a small number: its lower two bytes are 0 in the other byte order.
        self.byte_order = "<" if int.from_bytes(data[4:8], "little") & 0xFFFF else ">"
        version = self.read_number("I")
        if version not in (2, 3):
            raise ValueError(f"version {version} is not 2 or 3")

    def read(self) -> tuple[Fields, Divisors]:
        num_tensors, num_fields = self.read_number("Q"), self.read_number("Q")
        fields: Fields = {}
        for _ in range(num_fields):
            key = self.read_string(_MAX_NAME_BYTES)
            if key in fields:
                raise ValueError(f"it contains {key!r} twice")
            fields[key] = self.read_value(self.read_number("I"))
        tensors = self.read_tensor_infos(num_tensors)
        alignment = fields.get("general.alignment", 32)
        if not isinstance(alignment, int) or alignment < 1 or alignment & (alignment - 1):
            raise ValueError(f"its alignment of {alignment} is not a power of two")
        data_start = math.ceil(self.offset / alignment) * alignment
        divisors: Divisors = {}
        for name, (shape, tensor_type, tensor_offset) in tensors.items():
            if data_start + tensor_offset > len(self.data):
                raise ValueError(f"it ends before the tensor {name}")
            if name in ROPE_TENSORS:
                size = math.prod(shape)
                if tensor_type != _FLOAT32_TENSOR_TYPE or size > _MAX_LIST_ITEMS:
                    raise ValueError(f"{name} is not a list of float32 numbers")
                divisors[name] = tuple(self.unpack_list("f", size, data_start + tensor_offset))
        return {key: value for key, value in fields.items() if not key.startswith("tokenizer.")}, divisors

    def read_tensor_infos(self, count: int) -> dict[str, tuple[list[int], int, int]]:
        """Return the shape, the type and the offset of each tensor, by name."""
        infos = {}
        for _ in range(count):
            name, num_dimensions = self.read_string(_MAX_NAME_BYTES), self.read_number("I")
            if name in infos:
                raise ValueError(f"it contains the tensor {name!r} twice")
            if num_dimensions > 4:
                raise ValueError(f"the tensor {name!r} has {num_dimensions} dimensions")
            shape = [self.read_number("Q") for _ in range(num_dimensions)]
            infos[name] = shape, self.read_number("I"), self.read_number("Q")
        return infos

    def read_value(self, value_type: int) -> Any:
        """Read a value of the metadata. A list of strings is skipped and becomes None, because no rope field is one."""
        if value_type == _STRING_TYPE:
            return self.read_string(_MAX_STRING_BYTES)
        if value_type != _ARRAY_TYPE:
            return self.read_number(self.number_format(value_type))
        item_type, count = self.read_number("I"), self.read_number("Q")
        if count > _MAX_LIST_ITEMS:
            raise ValueError(f"it contains a list of {count} items")
        if item_type == _STRING_TYPE:
            for _ in range(count):
                self.skip(self.read_number("Q"))
            return None
        item_format = self.number_format(item_type)
        values = self.unpack_list(item_format, count, self.offset)
        self.skip(struct.calcsize(item_format) * count)
        return values

    def read_string(self, max_bytes: int) -> str:
        """Read a string after its length. Raises ValueError for one of more than `max_bytes`."""
        size = self.read_number("Q")
        if size > max_bytes:
            raise ValueError(f"it contains a string of {size} bytes")
        start = self.offset
        self.skip(size)
        return self.data[start : self.offset].decode("utf-8")

    def read_number(self, number_format: str) -> Any:
        """Read a number; `number_format` is its struct format without the byte order."""
        (value,) = struct.unpack_from(self.byte_order + number_format, self.data, self.offset)
        self.offset += struct.calcsize(number_format)
        return value

    def skip(self, size: int) -> None:
        self.offset += size
        if self.offset > len(self.data):
            raise ValueError("it is truncated")

    def unpack_list(self, number_format: str, count: int, start: int) -> list[Any]:
        return list(struct.unpack_from(f"{self.byte_order}{count}{number_format}", self.data, start))

    def number_format(self, value_type: int) -> str:
        if value_type not in _NUMBER_FORMATS:
            raise ValueError(f"it contains a value of the unknown type {value_type}")
        return _NUMBER_FORMATS[value_type]
