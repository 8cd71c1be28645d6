"""The rotation in C++ on CPUs: native/rotate.cpp, compiled when ropewalk was installed (see hatch_build.py)."""

from __future__ import annotations

import ctypes
import struct
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from ropewalk.ops.backends.base import Backend, Launch, RotationTask, row_strides

NATIVE_FOLDER = Path(__file__).parents[1] / "native"

# `Plan` of rotate.cpp is 31 int64 fields. A plan for q alone leaves the last seven, which describe k, at zero.
_PLAN_BYTES = 31 * 8
_PACK_PLAN = {1: struct.Struct("24q56x").pack, 2: struct.Struct("31q").pack}  # by number of tensors
_pack_addresses = struct.Struct("7q").pack
_DTYPE_CODES = {torch.float64: 0, torch.float32: 1, torch.bfloat16: 2, torch.float16: 3}  # `DType` of rotate.cpp
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
                level = library.ropewalk_support_level(_PLAN_BYTES)
            except (OSError, AttributeError) as error:
                self._unavailable_reason = str(error)
                continue
            if level > best_level:
                best_level, self.instruction_set = level, path.stem.removeprefix("rotate_")
                self._rotate = library.ropewalk_rotate
                self._rotate.argtypes = (ctypes.c_char_p, ctypes.c_char_p, ctypes.c_int)
                self._rotate.restype = None

    def unavailable_reason(self) -> str | None:
        return self._unavailable_reason if self._rotate is None else None

    @property
    def variant(self) -> str:
        return f"{self.name} ({self.instruction_set})"

    def rotate(self, task: RotationTask) -> None:
        self.prepare(task)(*task.addresses())

    def prepare(self, task: RotationTask) -> Launch:
        q, angles = task.inputs[0], task.angles
        batch, _, tokens, channels = q.shape
        is_fixed_point = len(angles) == 3
        fields = [_DTYPE_CODES[q.dtype], len(task.inputs), batch, tokens, channels]
        fields += [task.start, angles[1].shape[-1], task.interleaved, task.inverse, is_fixed_point]
        if is_fixed_point:
            positions, frequencies, factors = map(row_strides, angles)
            fields += [*positions, 0, frequencies[0], 0, frequencies[1], *factors]
        else:
            fields += [*row_strides(angles[0]), *row_strides(angles[1]), 0]
        for x, out in zip(task.inputs, task.outputs, strict=True):
            fields += [x.shape[1], *x.stride()[:3], *out.stride()[:3]]
        plan = _PACK_PLAN[len(task.inputs)](*fields)
        native_rotate, max_threads = self._rotate, 1 + q.numel() // _ELEMENTS_PER_THREAD

        def launch(*addresses: int) -> None:
            native_rotate(plan, _pack_addresses(*addresses), min(torch.get_num_threads(), max_threads))

        return launch
