"""The rotation in plain torch: the definition of the result, and the backend for devices without a faster one."""

from __future__ import annotations

import torch

from ropewalk.ops.angles import as_tables, split_pairs
from ropewalk.ops.backends.base import Backend, RotationTask

_BLOCK_ELEMENTS = 2**18  # rotated at a time, so that float32 copies stay in the CPU's cache


class Reference(Backend):
    """Rotate block by block of tokens with torch operators."""

    name = "reference"

    def rotate(self, task: RotationTask) -> None:
        compute_dtype = torch.float64 if task.inputs[0].dtype == torch.float64 else torch.float32
        cos_BTP, sin_BTP = as_tables(task.angles, compute_dtype)
        if task.inverse:
            sin_BTP = -sin_BTP
        cos_B1TP, sin_B1TP = cos_BTP[:, None], sin_BTP[:, None]
        start, pairs = task.start, cos_BTP.shape[-1]
        for x_BHTD, out_BHTD in zip(task.inputs, task.outputs, strict=True):
            if out_BHTD is not x_BHTD:
                out_BHTD[..., :start] = x_BHTD[..., :start]
                out_BHTD[..., start + 2 * pairs :] = x_BHTD[..., start + 2 * pairs :]
            x_first, x_second = split_pairs(x_BHTD, start, pairs, task.interleaved)
            out_first, out_second = split_pairs(out_BHTD, start, pairs, task.interleaved)
            tokens = x_BHTD.shape[-2]
            block_tokens = max(1, _BLOCK_ELEMENTS * tokens // max(1, x_BHTD.numel()))
            for begin in range(0, tokens, block_tokens):
                block = slice(begin, begin + block_tokens)
                cos, sin = cos_B1TP[..., block, :], sin_B1TP[..., block, :]
                first, second = x_first[..., block, :].to(compute_dtype), x_second[..., block, :].to(compute_dtype)
                # Both results are complete before either is written: in place they share memory with the inputs.
                rotated_first = torch.addcmul(first * cos, second, sin, value=-1)
                rotated_second = torch.addcmul(second * cos, first, sin)
                out_first[..., block, :], out_second[..., block, :] = rotated_first, rotated_second
