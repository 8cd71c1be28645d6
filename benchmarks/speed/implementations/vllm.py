"""The operator of vLLM, `_C::rotary_embedding` (csrc/pos_encoding_kernels.cu, csrc/cpu/pos_encoding.cpp).

Shapes: S tokens of all rows, N positions of the table, R = 2 P columns: cos of all pairs, then sin.
"""

from __future__ import annotations

from importlib import import_module

import torch

from benchmarks.speed.cases import Case, Inputs
from benchmarks.speed.implementations.base import Call, Implementation, find_missing_requirement, flatten_tokens


class Vllm(Implementation):
    """In place, with a table in the dtype of q, as vLLM's rotary module makes it."""

    name = "vLLM"
    package = "vllm"
    in_place = True

    def unavailable_reason(self, case: Case) -> str | None:
        if case.device.type == "cpu" and case.shape.q_prefix:
            return "its CPU operator supports contiguous heads only"
        return find_missing_requirement(case, "vllm", needs_cuda=False)

    def prepare(self, inputs: Inputs) -> Call:
        rotary_embedding = import_module("vllm._custom_ops").rotary_embedding
        cos_sin_NR = torch.cat(inputs.tables_by_position, -1).to(inputs.case.dtype)
        q, k, positions_S = flatten_tokens(inputs.q_BHTD), flatten_tokens(inputs.k_BHTD), inputs.positions_BT.flatten()
        dim, is_neox = inputs.case.shape.dim, not inputs.case.is_interleaved
        return lambda: rotary_embedding(positions_S, q, k, dim, cos_sin_NR, is_neox)
