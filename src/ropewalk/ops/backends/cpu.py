"""The rotation in C++ on a CPU: rotate.cpp, compiled when ropewalk was installed (see hatch_build.py)."""

from __future__ import annotations

import ctypes
import struct
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ropewalk.ops.backends.base import Backend, strides_of

NATIVE = Path(__file__).parents[1] / "native"
_TYPES = {torch.float64: 0, torch.float32: 1, torch.bfloat16: 2, torch.float16: 3}
_BYTES = 44 * 8  # of a `Task` in rotate.cpp
_PACKS = [struct.Struct(form).pack for form in ("", "35q72x", "44q")]  # `Task` in rotate.cpp, with one of heads or two
_NOTHING = (0,) * 8  # in place of tables, or of positions
_GRAIN = 2**15  # numbers that are worth a thread


class Cpu(Backend):
    """Of the instruction sets that it was compiled for, the best one that this processor has."""

    name = "c++"
    devices = frozenset({"cpu"})
    rank = 1

    def __init__(self, libraries: Sequence[Path] = tuple(NATIVE.glob("*.so"))) -> None:
        """`libraries`: rotate.cpp, compiled; the best of them is taken."""
        self._turn: Any = None
        self._missing = (
            "none of what was compiled is for this processor"
            if libraries
            else "it was not compiled when ropewalk was installed, for want of a C++ compiler with OpenMP (GCC 11 on)"
        )
        best = 0
        for path in libraries:
            try:
                library = ctypes.CDLL(str(path))
                fit = library.ropewalk_fit(_BYTES)
            except (OSError, AttributeError) as error:
                self._missing = str(error)
                continue
            if fit > best:
                best, self.instructions = fit, path.stem.removeprefix("rotate_")
                self._turn = library.ropewalk_turn
                self._turn.argtypes, self._turn.restype = (ctypes.c_char_p,), None

    def missing(self) -> str | None:
        return self._missing if self._turn is None else None

    @property
    def variant(self) -> str:
        return f"{self.name} ({self.instructions})"

    def turn(
        self,
        xs: Sequence[Tensor],
        outs: Sequence[Tensor],
        angles: Sequence[Tensor],
        start: int,
        interleaved: bool,
        inverse: bool,
    ) -> None:
        q = xs[0]
        batch, _, tokens, channels = q.shape
        threads = min(torch.get_num_threads(), 1 + q.numel() // _GRAIN)
        task = [_TYPES[q.dtype], len(xs), batch, tokens, channels]
        task += [start, angles[1].shape[-1], interleaved, inverse, threads]
        if len(angles) == 2:
            cos, sin = angles
            task += [cos.data_ptr(), sin.data_ptr(), *strides_of(cos), *strides_of(sin), *_NOTHING]
        else:
            task += _NOTHING
            for part in angles:
                task += [part.data_ptr(), *strides_of(part)]
        for x, out in zip(xs, outs, strict=True):
            task += [x.data_ptr(), out.data_ptr(), x.shape[1], *x.stride()[:3], *out.stride()[:3]]
        self._turn(_PACKS[len(xs)](*task))
