"""The rotations to measure: q and k with the shapes of real models, in prefill and in decoding.

Shapes: B batch rows, H heads, T tokens, D rotary channels of a head, P pairs (D/2), N positions of a table.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from ropewalk.frequencies import Frequencies
from ropewalk.rope import Layout, Rope

_FIRST_DECODE_POSITION = 4096
_DECODE_POSITION_STEP = 97  # between the rows of a batch, so that all have different positions
# Rotating in place again and again with bfloat16 tables scales a pair by up to 1 +- 2^-9 each time. After this many
# rotations q and k are filled again, before they overflow or vanish.
_MAX_IN_PLACE_ROTATIONS = 256


@dataclass(frozen=True)
class ModelShape:
    """The queries and keys of one layer of a model.

    Attributes:
        name: the name on the command line.
        heads, kv_heads: heads of q and of k.
        dim: rotary channels of a head.
        base: RoPE theta.
        source: where the values were published.
        layout: of the pairs.
        q_prefix, k_prefix: channels before the rotary ones in each head of q and of k.
    """

    name: str
    heads: int
    kv_heads: int
    dim: int
    base: float
    source: str
    layout: Layout = "half"
    q_prefix: int = 0
    k_prefix: int = 0


MODEL_SHAPES = {
    shape.name: shape
    for shape in (
        ModelShape("llama-3-8b", 32, 8, 128, 500_000.0, "meta-llama/Meta-Llama-3-8B, config.json"),
        ModelShape("qwen3-32b", 64, 8, 128, 1_000_000.0, "Qwen/Qwen3-32B, config.json"),
        ModelShape(
            "deepseek-v3", 128, 1, 64, 10_000.0, "deepseek-ai/DeepSeek-V3, config.json", "interleaved", 128, 512
        ),
        ModelShape("smollm2", 9, 3, 64, 100_000.0, "HuggingFaceTB/SmolLM2-135M-Instruct, config.json"),
    )
}


@dataclass(frozen=True)
class Case:
    """One rotation to measure: `tokens` tokens in each of `batch` rows. One token is a step of decoding."""

    shape: ModelShape
    batch: int
    tokens: int
    dtype: torch.dtype
    device: torch.device

    def __str__(self) -> str:
        return f"{self.shape.name}, {describe_phase(self.batch, self.tokens)}, {self.dtype_name}"

    @property
    def dtype_name(self) -> str:
        """The dtype without `torch.`."""
        return str(self.dtype).removeprefix("torch.")

    @property
    def is_interleaved(self) -> bool:
        """Whether pair i is channels (2i, 2i + 1)."""
        return self.shape.layout == "interleaved"

    @property
    def bytes_moved(self) -> int:
        """The bytes that every implementation must read or write: q and k, each once in and once out."""
        channels = (self.shape.heads + self.shape.kv_heads) * self.shape.dim
        return 2 * self.batch * self.tokens * channels * self.dtype.itemsize


def describe_phase(batch: int, tokens: int) -> str:
    """Return what a case measures, such as `prefill, 4,096 tokens`."""
    return f"decode, batch {batch}" if tokens == 1 else f"prefill, {tokens:,} tokens"


class Inputs:
    """The tensors of a case.

    Attributes:
        q_BHTD, k_BHTD: views of [B, T, H, D], as the projections of a model return them; for DeepSeek the rotary part
            of wider heads.
        positions_BT: one row 0 .. T - 1 in prefill; in decoding one row per sequence, all at different positions.
        frequencies: unscaled, so that repeated rotation in place does not multiply by an attention factor.
    """

    def __init__(self, case: Case) -> None:
        shape = case.shape
        self.case = case
        self._whole_heads = [
            torch.empty(case.batch, case.tokens, heads, prefix + shape.dim, dtype=case.dtype, device=case.device)
            for heads, prefix in ((shape.heads, shape.q_prefix), (shape.kv_heads, shape.k_prefix))
        ]
        self.q_BHTD, self.k_BHTD = (whole[..., -shape.dim :].transpose(1, 2) for whole in self._whole_heads)
        self.frequencies = Frequencies(Rope(shape.dim, shape.base).inv_freq)
        positions_BT = torch.arange(case.tokens)[None]
        if case.tokens == 1:
            positions_BT = _FIRST_DECODE_POSITION + _DECODE_POSITION_STEP * torch.arange(case.batch)[:, None]
        self.positions_BT = positions_BT.to(case.device)
        self.fill()

    def fill(self) -> None:
        """Fill q and k with new normally distributed values."""
        for whole in self._whole_heads:
            whole.normal_()
        self._rotations_left = _MAX_IN_PLACE_ROTATIONS

    def prepare_in_place_rotations(self, count: int) -> None:
        """Fill q and k again if `count` more rotations in place could make their values overflow or vanish."""
        if count > self._rotations_left:
            self.fill()
        self._rotations_left -= count

    @cached_property
    def tables(self) -> tuple[Tensor, Tensor]:
        """cos and sin at the positions, [B, T, P] each, exact, float32."""
        return self._cos_sin(self.positions_BT)

    @cached_property
    def tables_by_position(self) -> tuple[Tensor, Tensor]:
        """cos and sin at all positions from 0 on, [N, P] each, for implementations that index tables by position."""
        return self._cos_sin(torch.arange(int(self.positions_BT.max()) + 1))

    def _cos_sin(self, positions: Tensor) -> tuple[Tensor, Tensor]:
        cos, sin = self.frequencies.cos_sin(positions.cpu().numpy())
        return torch.from_numpy(cos).to(self.case.device), torch.from_numpy(sin).to(self.case.device)
