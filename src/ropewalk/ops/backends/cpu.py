"""The rotation in C++ on CPUs: native/rotate.cpp, compiled when ropewalk was installed (see hatch_build.py)."""

from __future__ import annotations

import ctypes
import struct
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from ropewalk.ops.backends.base import Backend, RotationTask, row_strides

NATIVE_FOLDER = Path(__file__).parents[1] / "native"

# `Task` of rotate.cpp is 44 int64 fields. A task for q alone leaves the last nine, which describe k, at zero.
_TASK_BYTES = 44 * 8
_PACK_TASK = {1: struct.Struct("35q72x").pack, 2: struct.Struct("44q").pack}  # by number of tensors
_DTYPE_CODES = {torch.float64: 0, torch.float32: 1, torch.bfloat16: 2, torch.float16: 3}  # `DType` of rotate.cpp
_NO_TABLES = _NO_FIXED_POINT = (0,) * 8
_ELEMENTS_PER_THREAD = 2**15  # of q; starting another thread for fewer takes longer than it saves


class Cpu(Backend):
    """Call the compiled library for the best instruction set that this CPU has."""

    name = "c++"
    devices = frozenset({"cpu"})
    rank = 1

    def __init__(self, libraries: Sequence[Path] = tuple(NATIVE_FOLDER.glob("*.so"))) -> None:
        """`libraries`: rotate.cpp, compiled for several instruction sets; the best usable one is loaded."""
        self._rotate: Any = None
        self._unavailable_reason = (
            "none of the compiled libraries fits this CPU"
            if libraries
            else "it was not compiled: no C++ compiler with OpenMP (GCC 11 or newer) when ropewalk was installed"
        )
        best_level = 0
        for path in libraries:
            try:
                library = ctypes.CDLL(str(path))
                level = library.ropewalk_support_level(_TASK_BYTES)
            except (OSError, AttributeError) as error:
                self._unavailable_reason = str(error)
                continue
            if level > best_level:
                best_level, self.instruction_set = level, path.stem.removeprefix("rotate_")
                self._rotate = library.ropewalk_rotate
                self._rotate.argtypes, self._rotate.restype = (ctypes.c_char_p,), None

    def unavailable_reason(self) -> str | None:
        return self._unavailable_reason if self._rotate is None else None

    @property
    def variant(self) -> str:
        return f"{self.name} ({self.instruction_set})"

    def rotate(self, task: RotationTask) -> None:
        q, angles = task.inputs[0], task.angles
        batch, _, tokens, channels = q.shape
        pairs = angles[1].shape[-1]
        threads = min(torch.get_num_threads(), 1 + q.numel() // _ELEMENTS_PER_THREAD)
        fields = [_DTYPE_CODES[q.dtype], len(task.inputs), batch, tokens, channels]
        fields += [task.start, pairs, task.interleaved, task.inverse, threads]
        if len(angles) == 2:
            cos, sin = angles
            fields += [cos.data_ptr(), sin.data_ptr(), *row_strides(cos), *row_strides(sin), *_NO_FIXED_POINT]
        else:
            fields += _NO_TABLES
            for part in angles:
                fields += [part.data_ptr(), *row_strides(part)]
        for x, out in zip(task.inputs, task.outputs, strict=True):
            fields += [x.data_ptr(), out.data_ptr(), x.shape[1], *x.stride()[:3], *out.stride()[:3]]
        self._rotate(_PACK_TASK[len(task.inputs)](*fields))
