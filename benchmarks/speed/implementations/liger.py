"""The Triton rotation of Liger-Kernel, `liger_kernel/transformers/rope.py`.

Shapes: B batch rows, T tokens, D rotary channels of a head.
"""

from __future__ import annotations

from importlib import import_module

import torch

from benchmarks.speed.cases import Case, Inputs
from benchmarks.speed.implementations.base import Call, Implementation, find_missing_requirement


class Liger(Implementation):
    """`liger_rotary_pos_emb`, which works in place on q and k as projections return them."""

    name = "Liger-Kernel"
    package = "liger-kernel"
    in_place = True

    def unavailable_reason(self, case: Case) -> str | None:
        return find_missing_requirement(case, "liger_kernel", supports_interleaved=False)

    def prepare(self, inputs: Inputs) -> Call:
        apply = import_module("liger_kernel.transformers.rope").liger_rotary_pos_emb
        cos_BTD, sin_BTD = (torch.cat([part, part], -1).to(inputs.case.dtype) for part in inputs.tables)
        q_BHTD, k_BHTD = inputs.q_BHTD, inputs.k_BHTD
        return lambda: apply(q_BHTD, k_BHTD, cos_BTD, sin_BTD)
