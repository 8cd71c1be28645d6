"""vLLM's operator, `_C::rotary_embedding` (csrc/pos_encoding_kernels.cu, csrc/cpu/pos_encoding.cpp).

Shapes: S tokens of all rows, N positions of the table, R = 2 P columns: cos of all pairs, then sin.
"""

from __future__ import annotations

from importlib import import_module

import torch
from benchmarks.speed.peers.base import Call, Peer, in_one_row, needs
from benchmarks.speed.shapes import Case, Inputs


class Vllm(Peer):
    """In place; a table in the dtype of q, as vLLM's own rotary module makes it."""

    name = "vLLM"
    package = "vllm"
    in_place = True

    def missing(self, case: Case) -> str | None:
        if case.device.type == "cpu" and case.shape.before_q:
            return "its operator for CPUs turns heads that lie side by side"
        return needs(case, "vllm", cuda=False)

    def prepare(self, inputs: Inputs) -> Call:
        rotary_embedding = import_module("vllm._custom_ops").rotary_embedding
        cache_NR = torch.cat(inputs.looked_up, -1).to(inputs.case.dtype)
        q, k, positions_S = in_one_row(inputs.q_BHTD), in_one_row(inputs.k_BHTD), inputs.positions_BT.flatten()
        dim, half = inputs.case.shape.dim, inputs.case.shape.layout == "half"
        return lambda: rotary_embedding(positions_S, q, k, dim, cache_NR, half)
