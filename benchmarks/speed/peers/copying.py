"""The limit: what it costs to move q and k once and turn nothing."""

from __future__ import annotations

import ctypes
import mmap
import sys
from typing import ClassVar, Literal

import torch
from benchmarks.speed.peers.base import Call, Peer
from benchmarks.speed.shapes import Case, Inputs
from torch import Tensor

LARGE_PAGES = "copy, large pages"
_LARGE = 2**21  # bytes of a large page


class Copy(Peer):
    """Into memory that is new each time: what a rotation out of place is held against."""

    name = "copy"
    role: ClassVar[Literal["limit"]] = "limit"

    def prepare(self, inputs: Inputs) -> Call:
        return lambda: (inputs.q_BHTD.clone(), inputs.k_BHTD.clone())


class CopyLargePages(Peer):
    """Into new memory for which large pages are asked, as ours does on CPUs: what is left of its lead is its own."""

    name = LARGE_PAGES
    role: ClassVar[Literal["limit"]] = "limit"

    def missing(self, case: Case) -> str | None:
        if case.device.type != "cpu" or sys.platform != "linux":
            return "asks Linux for large pages of a CPU's memory"
        q_bytes = case.batch * case.tokens * case.shape.heads * case.shape.dim * case.dtype.itemsize
        return None if q_bytes > 2 * _LARGE else "q and k are too small for large pages; ours asks for none either"

    def prepare(self, inputs: Inputs) -> Call:
        madvise = ctypes.CDLL(None).madvise
        madvise.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)

        def copied(x_BHTD: Tensor) -> Tensor:
            new_BHTD = torch.empty_like(x_BHTD)
            begin, page = new_BHTD.data_ptr(), mmap.PAGESIZE
            first, last = -(-begin // page) * page, (begin + new_BHTD.nbytes) // page * page
            if first + 2 * _LARGE < last:  # as ours does: k may be too small where q is not
                madvise(first, last - first, mmap.MADV_HUGEPAGE)
            return new_BHTD.copy_(x_BHTD)

        return lambda: (copied(inputs.q_BHTD), copied(inputs.k_BHTD))


class CopyInto(Peer):
    """Into memory that is there already: what a rotation in place is held against."""

    name = "copy into"
    role: ClassVar[Literal["limit"]] = "limit"

    def prepare(self, inputs: Inputs) -> Call:
        q_BHTD, k_BHTD = torch.empty_like(inputs.q_BHTD), torch.empty_like(inputs.k_BHTD)
        return lambda: (q_BHTD.copy_(inputs.q_BHTD), k_BHTD.copy_(inputs.k_BHTD))
