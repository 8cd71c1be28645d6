"""The cos and sin tables that an extended model reads: exact at every position, for any frequencies.

Shapes: B batch, T tokens, P pairs (dim/2), A position axes, U columns (a pair with the axis it turns along), C channels
of the table, R rows of the batch that have frequencies of their own (1 where they share).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ropewalk.frequencies import Frequencies, fractional_turns
from ropewalk.ops.angles import cos_sin

Rows = tuple[Frequencies, ...]


@dataclass(frozen=True)
class ChannelLayout:
    """Where each channel of a rotary module's table comes from.

    Attributes:
        axes: position axes, 1 for plain positions.
        columns_U: every (pair, axis) that occurs.
        column_C: the column of each channel.
        complex: whether the table is one complex tensor instead of cos and sin.
        follows_dtype: whether the table takes the dtype of the hidden states; float32 otherwise.
    """

    axes: int
    columns_U: tuple[tuple[int, int], ...]
    column_C: tuple[int, ...]
    complex: bool
    follows_dtype: bool


class RotaryTable(nn.Module):
    """cos and sin of one layer type, in the arrangement of the rotary module that it serves."""

    high_RU: Tensor
    low_RU: Tensor
    column_C: Tensor

    def __init__(
        self,
        frequencies: Frequencies,
        channel_layout: ChannelLayout,
        device: torch.device,
        follow: Callable[[int], Frequencies] | None = None,
    ) -> None:
        """`follow`: for a dynamic scaling, the frequencies for a text of so many tokens."""
        super().__init__()
        self.channel_layout = channel_layout
        self.follow = follow
        self.before: Callable[[Tensor], None] | None = None  # told the positions before they are looked up
        self.answer: tuple[Tensor, float] | None = None
        self.rows: Rows = (frequencies,)
        high_RU, low_RU = self._turns(self.rows)
        # Integers: a later model.to(bfloat16) leaves them as they are, and moves them with the model.
        self.register_buffer("high_RU", high_RU.to(device), persistent=False)
        self.register_buffer("low_RU", low_RU.to(device), persistent=False)
        self.register_buffer("column_C", torch.tensor(channel_layout.column_C, device=device), persistent=False)

    def frequencies_at(self, length: int) -> Frequencies:
        """What it turns by for a text of that length."""
        return self.rows[0] if self.follow is None else self.follow(max(length, 1))

    def set(self, rows: Rows) -> None:
        """Turn by other frequencies from now on: one for all rows of the batch, or one for each."""
        if rows != self.rows:
            self.high_RU, self.low_RU = (turns_RU.to(self.high_RU.device) for turns_RU in self._turns(rows))
            self.rows = rows

    def forward(self, x: Tensor, position_ids: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        """The table at `position_ids` ([B, T], or [A, B, T] where there are axes), for hidden states like `x`."""
        if self.before is not None:
            self.before(position_ids)
        if self.answer is None:
            cos_BTU, sin_BTU = cos_sin(self._reduced(position_ids, self.high_RU, self.low_RU), factors(self.rows))
        else:
            angle_BTU = self.answer[0].expand(*position_ids.shape[-2:], -1)
            cos_BTU, sin_BTU = angle_BTU.cos() * self.answer[1], angle_BTU.sin() * self.answer[1]
        dtype = x.dtype if self.channel_layout.follows_dtype else torch.promote_types(x.dtype, torch.float32)
        cos_BTC, sin_BTC = (part_BTU.to(dtype)[..., self.column_C].to(x.device) for part_BTU in (cos_BTU, sin_BTU))
        return torch.complex(cos_BTC, sin_BTC) if self.channel_layout.complex else (cos_BTC, sin_BTC)

    def reduced(self, position_ids: Tensor, rows: Rows) -> Tensor:
        """The angle of each column at the positions under these frequencies, [B, T, U], as `reduced_turns` has it."""
        high_RU, low_RU = (turns_RU.to(self.high_RU.device) for turns_RU in self._turns(rows))
        return self._reduced(position_ids, high_RU, low_RU)

    @contextmanager
    def answering(self, angle_U: Tensor, factor: float) -> Iterator[None]:
        """Inside, every position has these angles, in radians, and this attention factor."""
        self.answer = angle_U.to(self.high_RU.device), factor
        try:
            yield
        finally:
            self.answer = None

    def _reduced(self, position_ids: Tensor, high_RU: Tensor, low_RU: Tensor) -> Tensor:
        positions_BTU = self._along_axes(position_ids.to(high_RU.device, torch.int64))
        return fractional_turns(positions_BTU, high_RU[:, None], low_RU[:, None])

    def _turns(self, rows: Rows) -> tuple[Tensor, Tensor]:
        pair_U = [pair for pair, _ in self.channel_layout.columns_U]
        high, low = zip(*(frequencies.turns() for frequencies in rows), strict=True)
        return tuple(torch.stack([torch.from_numpy(turns_P[pair_U]) for turns_P in part]) for part in (high, low))  # type: ignore[return-value]

    def _along_axes(self, position_ids: Tensor) -> Tensor:
        if self.channel_layout.axes == 1 or position_ids.ndim == 2:  # a text stands at the same position on every axis
            return position_ids[..., None]
        return torch.stack([position_ids[axis] for _, axis in self.channel_layout.columns_U], dim=-1)


def factors(rows: Sequence[Frequencies]) -> float | Tensor:
    """The attention factors of the rows, ready to multiply a table: one number, or [R, 1, 1]."""
    each = [frequencies.attention_factor for frequencies in rows]
    return each[0] if len(set(each)) == 1 else torch.tensor(each, dtype=torch.float64)[:, None, None]
