"""The cos and sin tables of an extended model: exact at every position, for any frequencies.

A table is passive. Whoever applies a scaling creates it, `DecoderHooks` (dynamic.py) chooses its frequencies for each
forward call of the decoder, and the rotary module calls it for the positions of the call. A choice holds in the thread
that made it, so several threads can use one model at the same time.

Shapes: B batch rows, T tokens, P pairs (dim/2), A position axes, U columns (a pair and the axis it follows), C channels
of the table, R 1 if all batch rows share their frequencies, else B.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from ropewalk.frequencies import Frequencies, fixed_point_angle
from ropewalk.models.channel_layout import ChannelLayout
from ropewalk.ops.angles import cos_sin_of_fixed_point, to_fixed_point

RowFrequencies = tuple[Frequencies, ...]  # for each row of the batch, or a single entry if the rows share them


@dataclass(frozen=True, eq=False)
class LayerFrequencies(Frequencies):
    """Frequencies of a table if each layer has its own set (`learned`).

    The table itself is unscaled, and every layer replaces it by its own. Two objects are equal if all their sets are.

    Attributes:
        inv_freq: the unscaled inverse frequencies.
        layers: the set of each layer.
    """

    layers: tuple[Frequencies, ...] = ()

    def _key(self) -> tuple[Any, ...]:
        return super()._key(), self.layers


class _TableIdentity:
    """Shared by a table and its replicas on other devices (`DataParallel`); a deep copy gets its own."""


class _Choices(threading.local):
    """What the forward call that runs in this thread has chosen for each table."""

    def __init__(self) -> None:
        self.row_frequencies: WeakKeyDictionary[_TableIdentity, RowFrequencies] = WeakKeyDictionary()
        self.angles: WeakKeyDictionary[_TableIdentity, tuple[Tensor, float]] = WeakKeyDictionary()


_choices = _Choices()


class RotaryTable(nn.Module):
    """cos and sin for one layer type of a rotary module, in the channel layout of that module.

    Attributes:
        channel_layout: the layout.
        frequencies: the frequencies outside of calls; those of every call if the table is static.
        frequencies_for_length: for a dynamic scaling, the frequencies for a text of so many tokens; None if static.
        follows_choices: whether the table asks for the choice of its thread. False for a static table unless it is
            being probed, so that torch.compile sees constant tensors.
    """

    high_RU: Tensor
    low_RU: Tensor
    pair_U: Tensor
    column_C: Tensor

    def __init__(
        self,
        frequencies: Frequencies,
        channel_layout: ChannelLayout,
        device: torch.device,
        frequencies_for_length: Callable[[int], Frequencies] | None = None,
    ) -> None:
        """Create a table; see the class for the arguments."""
        super().__init__()
        self._identity = _TableIdentity()
        self.channel_layout = channel_layout
        self.frequencies = frequencies
        self.frequencies_for_length = frequencies_for_length
        self.follows_choices = self.is_dynamic
        # Integer buffers move with the model, and a later model.to(bfloat16) does not round them.
        pair_U = torch.tensor([pair for pair, _ in channel_layout.columns_U], device=device)
        self.register_buffer("pair_U", pair_U, persistent=False)
        high_RU, low_RU = self._columns_in_fixed_point((frequencies,))
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
            return self.frequencies
        return self.frequencies_for_length(max(length, 1))

    @property
    def row_frequencies(self) -> RowFrequencies:
        """The frequencies of the forward call that runs in this thread; outside of calls, `frequencies`."""
        return _choices.row_frequencies.get(self._identity, (self.frequencies,))

    def choose(self, row_frequencies: RowFrequencies) -> None:
        """Use these frequencies in this thread until `end_choice`; a static table ignores them."""
        _choices.row_frequencies[self._identity] = row_frequencies

    def end_choice(self) -> None:
        """Forget the frequencies that this thread has chosen."""
        _choices.row_frequencies.pop(self._identity, None)

    def forward(self, x: Tensor, position_ids: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        """Return the table in the form of the rotary module: cos and sin, [B, T, C] each, or one complex tensor.

        Args:
            x: hidden states, for their dtype and device.
            position_ids: [B, T], or [A, B, T] if positions have several axes.
        """
        if self.follows_choices:
            return self._forward_as_chosen(x, position_ids)
        angle_BTU = self._fixed_point_angles(position_ids, self.high_RU, self.low_RU)
        return self.to_channels(x, *cos_sin_of_fixed_point(angle_BTU, self.frequencies.attention_factor))

    @torch.compiler.disable  # type: ignore[untyped-decorator]  # the choice differs between threads and calls
    def _forward_as_chosen(self, x: Tensor, position_ids: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        angle_override = _choices.angles.get(self._identity)
        if angle_override is not None:
            angle_U, factor = angle_override
            angle_BTU = angle_U.expand(*position_ids.shape[-2:], -1)
            return self.to_channels(x, angle_BTU.cos() * factor, angle_BTU.sin() * factor)
        angle_BTU = self.fixed_point_angles(position_ids, self.row_frequencies)
        return self.to_channels(x, *cos_sin_of_fixed_point(angle_BTU, attention_factors(self.row_frequencies)))

    def to_channels(self, x: Tensor, cos_BTU: Tensor, sin_BTU: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        """Return cos and sin of the columns, [..., T, U], in the form and the dtype of the rotary module's table."""
        dtype = x.dtype if self.channel_layout.follows_dtype else torch.promote_types(x.dtype, torch.float32)
        cos_BTC = cos_BTU.to(dtype)[..., self.column_C].to(x.device)
        sin_BTC = sin_BTU.to(dtype)[..., self.column_C].to(x.device)
        return torch.complex(cos_BTC, sin_BTC) if self.channel_layout.complex else (cos_BTC, sin_BTC)

    def fixed_point_angles(self, position_ids: Tensor, row_frequencies: RowFrequencies) -> Tensor:
        """Return the angle of each column under other frequencies, [B, T, U] int64 in units of 2^-64 rotation."""
        return self._fixed_point_angles(position_ids, *self._columns_in_fixed_point(row_frequencies))

    @contextmanager
    def override_angles(self, angle_U: Tensor, attention_factor: float) -> Iterator[None]:
        """Use these angles, in radians, and this attention factor at every position in this thread inside the block.

        Only one thread may do so for a static table at a time.
        """
        _choices.angles[self._identity] = angle_U.to(self.high_RU.device), attention_factor
        self.follows_choices = True
        try:
            yield
        finally:
            self.follows_choices = self.is_dynamic
            del _choices.angles[self._identity]

    def column_positions(self, position_ids: Tensor) -> Tensor:
        """Return the position that each column follows, [B, T, U] int64, or [B, T, 1] if that is the same for all."""
        position_ids = position_ids.to(self.pair_U.device, torch.int64)
        if self.channel_layout.axes == 1 or position_ids.ndim == 2:  # text has the same position on every axis
            return position_ids[..., None]
        return torch.stack([position_ids[axis] for _, axis in self.channel_layout.columns_U], dim=-1)

    def _fixed_point_angles(self, position_ids: Tensor, high_RU: Tensor, low_RU: Tensor) -> Tensor:
        return fixed_point_angle(self.column_positions(position_ids), high_RU[:, None], low_RU[:, None])

    def _columns_in_fixed_point(self, row_frequencies: RowFrequencies) -> tuple[Tensor, Tensor]:
        high_RP, low_RP, _ = to_fixed_point(row_frequencies, self.pair_U.device)
        return high_RP[:, self.pair_U], low_RP[:, self.pair_U]


def attention_factors(row_frequencies: Sequence[Frequencies]) -> float | Tensor:
    """Return the attention factor of the rows: a number if they agree, else [R, 1, 1] float64."""
    factors = [frequencies.attention_factor for frequencies in row_frequencies]
    return factors[0] if len(set(factors)) == 1 else torch.tensor(factors, dtype=torch.float64)[:, None, None]
