"""The rotation functions of transformers, as they are and under torch.compile.

Shapes: B batch rows, H heads, T tokens, D rotary channels of a head.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from benchmarks.speed.cases import Inputs
from benchmarks.speed.implementations.base import Call, Implementation


class Eager(Implementation):
    """`apply_rotary_pos_emb` of Llama, or `apply_rotary_pos_emb_interleave` of DeepSeek V3 for interleaved pairs."""

    name = "transformers"
    package = "transformers"

    def prepare(self, inputs: Inputs) -> Call:
        cos_BTD, sin_BTD = (torch.cat([part, part], -1).to(inputs.case.dtype) for part in inputs.tables)
        q_BHTD, k_BHTD, function = inputs.q_BHTD, inputs.k_BHTD, self._get_function(inputs)
        return lambda: function(q_BHTD, k_BHTD, cos_BTD, sin_BTD)

    def get_result(self, inputs: Inputs, returned: object) -> tuple[Tensor, Tensor]:
        q_BHTD, k_BHTD = super().get_result(inputs, returned)
        if not inputs.case.is_interleaved:
            return q_BHTD, k_BHTD
        # DeepSeek's function returns pairs in the half layout. The products of q and k are the same.
        return _interleave(q_BHTD), _interleave(k_BHTD)

    def _get_function(self, inputs: Inputs) -> Callable[..., Any]:
        if inputs.case.is_interleaved:
            from transformers.models.deepseek_v3.modeling_deepseek_v3 import apply_rotary_pos_emb_interleave

            return apply_rotary_pos_emb_interleave  # type: ignore[no-any-return]
        from transformers.models.llama.modeling_llama import apply_rotary_pos_emb

        return apply_rotary_pos_emb  # type: ignore[no-any-return]


class Compiled(Eager):
    """The same function under torch.compile, with one graph for the shapes of the case."""

    name = "torch.compile"
    package = "torch"

    def _get_function(self, inputs: Inputs) -> Callable[..., Any]:
        torch.compiler.reset()  # torch stops compiling a function after a few shapes
        return torch.compile(super()._get_function(inputs), fullgraph=True, dynamic=False)


def _interleave(x_BHTD: Tensor) -> Tensor:
    return torch.stack(x_BHTD.chunk(2, -1), -1).flatten(-2)
