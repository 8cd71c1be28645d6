"""The cos and sin tables of an extended model: exact at every position, for any frequencies.

A table is passive. Whoever applies a scaling creates it, `DecoderHooks` (dynamic.py) sets its frequencies before a
forward call of the decoder, and the rotary module calls it for the positions of the call.

Shapes: B batch rows, T tokens, P pairs (dim/2), A position axes, U columns (a pair and the axis it follows), C channels
of the table, R 1 if all batch rows share their frequencies, else B.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from ropewalk.frequencies import Frequencies, fixed_point_angle
from ropewalk.models.channel_layout import ChannelLayout
from ropewalk.ops.angles import cos_sin_of_fixed_point, to_fixed_point

RowFrequencies = tuple[Frequencies, ...]  # for each row of the batch, or a single entry if the rows share them


class RotaryTable(nn.Module):
    """cos and sin for one layer type of a rotary module, in the channel layout of that module.

    Attributes:
        channel_layout: the layout.
        row_frequencies: the frequencies that the table is computed with.
        frequencies_for_length: for a dynamic scaling, the frequencies for a text of so many tokens; None if static.
    """

    high_RU: Tensor
    low_RU: Tensor
    column_C: Tensor

    def __init__(
        self,
        frequencies: Frequencies,
        channel_layout: ChannelLayout,
        device: torch.device,
        frequencies_for_length: Callable[[int], Frequencies] | None = None,
    ) -> None:
        """Create a table that starts with `frequencies` in every row; see the class for the other arguments."""
        super().__init__()
        self.channel_layout = channel_layout
        self.frequencies_for_length = frequencies_for_length
        self.row_frequencies: RowFrequencies = (frequencies,)
        self._angle_override: tuple[Tensor, float] | None = None
        # Integer buffers move with the model, and a later model.to(bfloat16) does not round them.
        high_RU, low_RU = self._columns_in_fixed_point(self.row_frequencies, device)
        self.register_buffer("high_RU", high_RU, persistent=False)
        self.register_buffer("low_RU", low_RU, persistent=False)
        self.register_buffer("column_C", torch.tensor(channel_layout.column_C, device=device), persistent=False)

    @property
    def is_dynamic(self) -> bool:
        """Whether the frequencies depend on the length of the text."""
        return self.frequencies_for_length is not None

    def frequencies_at(self, length: int) -> Frequencies:
        """Return the frequencies for a text of `length` tokens; a static table has the same for every length."""
        if self.frequencies_for_length is None:
            return self.row_frequencies[0]
        return self.frequencies_for_length(max(length, 1))

    def set_frequencies(self, row_frequencies: RowFrequencies) -> None:
        """Compute the table with these frequencies from now on."""
        if row_frequencies != self.row_frequencies:
            self.high_RU, self.low_RU = self._columns_in_fixed_point(row_frequencies, self.high_RU.device)
            self.row_frequencies = row_frequencies

    def forward(self, x: Tensor, position_ids: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        """Return the table in the form of the rotary module: cos and sin, [B, T, C] each, or one complex tensor.

        Args:
            x: hidden states, for their dtype and device.
            position_ids: [B, T], or [A, B, T] if positions have several axes.
        """
        if self._angle_override is None:
            angle_BTU = self._fixed_point_angles(position_ids, self.high_RU, self.low_RU)
            cos_BTU, sin_BTU = cos_sin_of_fixed_point(angle_BTU, attention_factors(self.row_frequencies))
        else:
            angle_U, attention_factor = self._angle_override
            angle_BTU = angle_U.expand(*position_ids.shape[-2:], -1)
            cos_BTU, sin_BTU = angle_BTU.cos() * attention_factor, angle_BTU.sin() * attention_factor
        dtype = x.dtype if self.channel_layout.follows_dtype else torch.promote_types(x.dtype, torch.float32)
        cos_BTC = cos_BTU.to(dtype)[..., self.column_C].to(x.device)
        sin_BTC = sin_BTU.to(dtype)[..., self.column_C].to(x.device)
        return torch.complex(cos_BTC, sin_BTC) if self.channel_layout.complex else (cos_BTC, sin_BTC)

    def fixed_point_angles(self, position_ids: Tensor, row_frequencies: RowFrequencies) -> Tensor:
        """Return the angle of each column under other frequencies, [B, T, U] int64 in units of 2^-64 rotation."""
        high_RU, low_RU = self._columns_in_fixed_point(row_frequencies, self.high_RU.device)
        return self._fixed_point_angles(position_ids, high_RU, low_RU)

    @contextmanager
    def override_angles(self, angle_U: Tensor, attention_factor: float) -> Iterator[None]:
        """Use these angles, in radians, and this attention factor at every position inside the block."""
        self._angle_override = angle_U.to(self.high_RU.device), attention_factor
        try:
            yield
        finally:
            self._angle_override = None

    def _fixed_point_angles(self, position_ids: Tensor, high_RU: Tensor, low_RU: Tensor) -> Tensor:
        position_ids = position_ids.to(high_RU.device, torch.int64)
        if self.channel_layout.axes == 1 or position_ids.ndim == 2:  # text has the same position on every axis
            position_BTU = position_ids[..., None]
        else:
            position_BTU = torch.stack([position_ids[axis] for _, axis in self.channel_layout.columns_U], dim=-1)
        return fixed_point_angle(position_BTU, high_RU[:, None], low_RU[:, None])

    def _columns_in_fixed_point(self, row_frequencies: RowFrequencies, device: torch.device) -> tuple[Tensor, Tensor]:
        pair_U = [pair for pair, _ in self.channel_layout.columns_U]
        high_RP, low_RP, _ = to_fixed_point(row_frequencies, device)
        return high_RP[:, pair_U], low_RP[:, pair_U]


def attention_factors(row_frequencies: Sequence[Frequencies]) -> float | Tensor:
    """Return the attention factor of the rows: a number if they agree, else [R, 1, 1] float64."""
    factors = [frequencies.attention_factor for frequencies in row_frequencies]
    return factors[0] if len(set(factors)) == 1 else torch.tensor(factors, dtype=torch.float64)[:, None, None]
