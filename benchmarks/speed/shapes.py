"""What is rotated: q and k as real models have them, in a prefill or in a step of decoding.

Shapes: B rows of the batch, H heads, T tokens, D channels of a head, P pairs (D/2), N positions of a table.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from ropewalk.frequencies import Frequencies
from ropewalk.rope import Layout, Rope

_CONTEXT, _APART = 4096, 97  # decoding: the position of the first row, and how much further on each next one is
_TURNS = 256  # in place, between two fillings: tables in bfloat16 lengthen or shorten a pair by up to 2^-9 each time


@dataclass(frozen=True)
class Shape:
    """The queries and keys of one layer.

    Attributes:
        name: what a user calls it.
        heads, kv_heads, dim: of q and k, and channels of a head that turn.
        base: RoPE theta.
        layout: of the pairs.
        before_q, before_k: channels that stand before those that turn, in each head of q and in k.
        source: where the numbers stand.
    """

    name: str
    heads: int
    kv_heads: int
    dim: int
    base: float
    source: str
    layout: Layout = "half"
    before_q: int = 0
    before_k: int = 0


SHAPES = {
    shape.name: shape
    for shape in (
        Shape("llama-3-8b", 32, 8, 128, 500_000.0, "meta-llama/Meta-Llama-3-8B, config.json"),
        Shape("qwen3-32b", 64, 8, 128, 1_000_000.0, "Qwen/Qwen3-32B, config.json"),
        Shape("deepseek-v3", 128, 1, 64, 10_000.0, "deepseek-ai/DeepSeek-V3, config.json", "interleaved", 128, 512),
        Shape("smollm2", 9, 3, 64, 100_000.0, "HuggingFaceTB/SmolLM2-135M-Instruct, config.json"),
    )
}


@dataclass(frozen=True)
class Case:
    """One rotation to measure: `tokens` of each of `batch` rows; one token is a step of decoding."""

    shape: Shape
    batch: int
    tokens: int
    dtype: torch.dtype
    device: torch.device

    def __str__(self) -> str:
        phase = f"decode, batch {self.batch}" if self.tokens == 1 else f"prefill, {self.tokens:,} tokens"
        return f"{self.shape.name}, {phase}, {str(self.dtype).removeprefix('torch.')}"

    @property
    def moved(self) -> int:
        """Bytes that any rotation must move: q and k, once in and once out."""
        channels = (self.shape.heads + self.shape.kv_heads) * self.shape.dim
        return 2 * self.batch * self.tokens * channels * self.dtype.itemsize


class Inputs:
    """The tensors of a case.

    Attributes:
        q_BHTD, k_BHTD: views of [B, T, H, D], as projections give them; of DeepSeek the parts of wider heads that turn.
        positions_BT: of a prefill one row, 0 .. T - 1; of a step of decoding a row for each text, all different.
        frequencies: what to turn by. Unscaled: an attention factor would not survive many turns in place.
    """

    def __init__(self, case: Case) -> None:
        shape = case.shape
        self.case = case
        self._wide = [
            torch.empty(case.batch, case.tokens, heads, before + shape.dim, dtype=case.dtype, device=case.device)
            for heads, before in ((shape.heads, shape.before_q), (shape.kv_heads, shape.before_k))
        ]
        self.q_BHTD, self.k_BHTD = (wide[..., -shape.dim :].transpose(1, 2) for wide in self._wide)
        self.frequencies = Frequencies(Rope(shape.dim, shape.base).inv_freq)
        rows = _CONTEXT + _APART * torch.arange(case.batch)[:, None] if case.tokens == 1 else torch.zeros(1, 1).long()
        self.positions_BT = (rows + torch.arange(case.tokens)).to(case.device)
        self.fill()

    def fill(self) -> None:
        """New normal numbers in q and k."""
        for wide in self._wide:
            wide.normal_()
        self._left = _TURNS

    def spend(self, turns: int) -> None:
        """Say that q and k will be turned in place so many times: they are filled anew before they could vanish."""
        if turns > self._left:
            self.fill()
        self._left -= turns

    @cached_property
    def tables(self) -> tuple[Tensor, Tensor]:
        """cos and sin at the positions, [B, T, P], exact, float32."""
        return self._cos_sin(self.positions_BT)

    @cached_property
    def looked_up(self) -> tuple[Tensor, Tensor]:
        """cos and sin at every position from 0 on, [N, P], for those who look them up by position; exact, float32."""
        return self._cos_sin(torch.arange(int(self.positions_BT.max()) + 1))

    def _cos_sin(self, positions: Tensor) -> tuple[Tensor, Tensor]:
        cos, sin = self.frequencies.cos_sin(positions.cpu().numpy())
        return torch.from_numpy(cos).to(self.case.device), torch.from_numpy(sin).to(self.case.device)
