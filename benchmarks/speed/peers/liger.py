"""Liger-Kernel's rotation in Triton, `liger_kernel/transformers/rope.py`.

Shapes: B rows of the batch, T tokens, D channels of a head.
"""

from __future__ import annotations

from importlib import import_module

import torch
from benchmarks.speed.peers.base import Call, Peer, needs
from benchmarks.speed.shapes import Case, Inputs


class Liger(Peer):
    """`liger_rotary_pos_emb`. On q and k as projections give them it works in place."""

    name = "Liger-Kernel"
    package = "liger-kernel"
    in_place = True

    def missing(self, case: Case) -> str | None:
        return needs(case, "liger_kernel", interleaved=False)

    def prepare(self, inputs: Inputs) -> Call:
        apply = import_module("liger_kernel.transformers.rope").liger_rotary_pos_emb
        cos_BTD, sin_BTD = (torch.cat([part, part], -1).to(inputs.case.dtype) for part in inputs.tables)
        q_BHTD, k_BHTD = inputs.q_BHTD, inputs.k_BHTD
        return lambda: apply(q_BHTD, k_BHTD, cos_BTD, sin_BTD)
