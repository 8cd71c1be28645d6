"""FlashInfer's operator, `flashinfer.rope.apply_rope_with_cos_sin_cache_inplace`.

Shapes: S tokens of all rows, N positions of the table, R = 2 P columns: cos of all pairs, then sin.
"""

from __future__ import annotations

from importlib import import_module

import torch
from benchmarks.speed.peers.base import Call, Peer, in_one_row, needs
from benchmarks.speed.shapes import Case, Inputs


class FlashInfer(Peer):
    """In place; its table is float32."""

    name = "FlashInfer"
    package = "flashinfer-python"
    in_place = True

    def missing(self, case: Case) -> str | None:
        return needs(case, "flashinfer")

    def prepare(self, inputs: Inputs) -> Call:
        apply = import_module("flashinfer.rope").apply_rope_with_cos_sin_cache_inplace
        cache_NR = torch.cat(inputs.looked_up, -1)
        q, k, positions_S = in_one_row(inputs.q_BHTD), in_one_row(inputs.k_BHTD), inputs.positions_BT.flatten()
        dim, half = inputs.case.shape.dim, inputs.case.shape.layout == "half"
        return lambda: apply(positions_S, q, k, dim, cache_NR, half)
