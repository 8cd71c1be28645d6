"""The operator of FlashInfer, `flashinfer.rope.apply_rope_with_cos_sin_cache_inplace`.

Shapes: S tokens of all rows, N positions of the table, R = 2 P columns: cos of all pairs, then sin.
"""

from __future__ import annotations

from importlib import import_module

import torch

from benchmarks.speed.cases import Case, Inputs
from benchmarks.speed.implementations.base import Call, Implementation, find_missing_requirement, flatten_tokens


class FlashInfer(Implementation):
    """In place, with a float32 table."""

    name = "FlashInfer"
    package = "flashinfer-python"
    in_place = True

    def unavailable_reason(self, case: Case) -> str | None:
        return find_missing_requirement(case, "flashinfer")

    def prepare(self, inputs: Inputs) -> Call:
        apply = import_module("flashinfer.rope").apply_rope_with_cos_sin_cache_inplace
        cos_sin_NR = torch.cat(inputs.tables_by_position, -1)
        q, k, positions_S = flatten_tokens(inputs.q_BHTD), flatten_tokens(inputs.k_BHTD), inputs.positions_BT.flatten()
        dim, is_neox = inputs.case.shape.dim, not inputs.case.is_interleaved
        return lambda: apply(positions_S, q, k, dim, cos_sin_NR, is_neox)
