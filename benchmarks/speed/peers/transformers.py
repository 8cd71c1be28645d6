"""transformers' own rotation, as its models call it, and what torch.compile makes of it.

Shapes: B rows of the batch, H heads, T tokens, D channels of a head.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from benchmarks.speed.peers.base import Call, Peer
from benchmarks.speed.shapes import Inputs
from torch import Tensor


class Eager(Peer):
    """`apply_rotary_pos_emb` of Llama; `apply_rotary_pos_emb_interleave` of DeepSeek V3 for the interleaved layout."""

    name = "transformers"
    package = "transformers"

    def prepare(self, inputs: Inputs) -> Call:
        cos_BTD, sin_BTD = (torch.cat([part, part], -1).to(inputs.case.dtype) for part in inputs.tables)
        q_BHTD, k_BHTD, turn = inputs.q_BHTD, inputs.k_BHTD, self._function(inputs)
        return lambda: turn(q_BHTD, k_BHTD, cos_BTD, sin_BTD)

    def answer(self, inputs: Inputs, returned: object) -> tuple[Tensor, Tensor]:
        q_BHTD, k_BHTD = super().answer(inputs, returned)
        if inputs.case.shape.layout == "half":
            return q_BHTD, k_BHTD
        # DeepSeek's hands back what came interleaved with first channels first, which no product of q and k sees.
        return _interleaved(q_BHTD), _interleaved(k_BHTD)

    def _function(self, inputs: Inputs) -> Callable[..., Any]:
        if inputs.case.shape.layout == "half":
            from transformers.models.llama.modeling_llama import apply_rotary_pos_emb

            return apply_rotary_pos_emb  # type: ignore[no-any-return]
        from transformers.models.deepseek_v3.modeling_deepseek_v3 import apply_rotary_pos_emb_interleave

        return apply_rotary_pos_emb_interleave  # type: ignore[no-any-return]


class Compiled(Eager):
    """The same function under torch.compile, one whole graph for the shapes of the case."""

    name = "torch.compile"
    package = "torch"

    def _function(self, inputs: Inputs) -> Callable[..., Any]:
        torch.compiler.reset()  # a function may be compiled for a handful of shapes only
        return torch.compile(super()._function(inputs), fullgraph=True, dynamic=False)


def _interleaved(x_BHTD: Tensor) -> Tensor:
    return torch.stack(x_BHTD.chunk(2, -1), -1).flatten(-2)
