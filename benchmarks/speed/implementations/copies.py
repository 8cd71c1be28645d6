"""The limits: the time to copy q and k without rotating them."""

from __future__ import annotations

import ctypes
import mmap
import sys
from typing import ClassVar

import torch
from torch import Tensor

from benchmarks.speed.cases import Case, Inputs
from benchmarks.speed.implementations.base import Call, Implementation, Role

LARGE_PAGES = "copy, large pages"
_LARGE_PAGE_BYTES = 2**21


class Copy(Implementation):
    """Copy into new memory: the limit of a rotation out of place."""

    name = "copy"
    role: ClassVar[Role] = "limit"

    def prepare(self, inputs: Inputs) -> Call:
        return lambda: (inputs.q_BHTD.clone(), inputs.k_BHTD.clone())


class CopyIntoLargePages(Implementation):
    """Copy into new memory in large pages, which ropewalk requests on CPUs, too.

    The speed relative to this copy excludes the advantage that ropewalk has from large pages.
    """

    name = LARGE_PAGES
    role: ClassVar[Role] = "limit"

    def unavailable_reason(self, case: Case) -> str | None:
        if case.device.type != "cpu" or sys.platform != "linux":
            return "large pages can be requested for CPU memory on Linux only"
        q_bytes = case.batch * case.tokens * case.shape.heads * case.shape.dim * case.dtype.itemsize
        if q_bytes <= 2 * _LARGE_PAGE_BYTES:
            return "q and k are too small for large pages; ropewalk requests none either"
        return None

    def prepare(self, inputs: Inputs) -> Call:
        madvise = ctypes.CDLL(None).madvise
        madvise.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)

        def copy(x_BHTD: Tensor) -> Tensor:
            copy_BHTD = torch.empty_like(x_BHTD)
            begin, page = copy_BHTD.data_ptr(), mmap.PAGESIZE
            first = -(-begin // page) * page
            last = (begin + copy_BHTD.nbytes) // page * page
            if first + 2 * _LARGE_PAGE_BYTES < last:  # the condition in rotate.cpp; k may not meet it where q does
                madvise(first, last - first, mmap.MADV_HUGEPAGE)
            return copy_BHTD.copy_(x_BHTD)

        return lambda: (copy(inputs.q_BHTD), copy(inputs.k_BHTD))


class CopyIntoExistingMemory(Implementation):
    """Copy into memory that is already mapped: the limit of a rotation in place."""

    name = "copy into"
    role: ClassVar[Role] = "limit"

    def prepare(self, inputs: Inputs) -> Call:
        q_BHTD, k_BHTD = torch.empty_like(inputs.q_BHTD), torch.empty_like(inputs.k_BHTD)
        return lambda: (q_BHTD.copy_(inputs.q_BHTD), k_BHTD.copy_(inputs.k_BHTD))
