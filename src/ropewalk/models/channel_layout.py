"""The layout of the cos and sin tables that a rotary module of transformers returns.

Rotary modules lay out their tables in many ways: the pairs twice in a row (half), each pair twice (interleaved), one
channel per pair, one complex number per pair, or sections that follow different axes of multimodal positions.
`probe_channel_layout` assumes none of them. It calls a copy of the module with frequencies and positions chosen so that
the angle of every channel of the result identifies its pair and its position axis.

Shapes: as in rotary_table.py.
"""

from __future__ import annotations

import copy
import inspect
import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ropewalk import config as configs
from ropewalk.compat.transformers import learned_log_factors
from ropewalk.errors import UnsupportedModelError

_ANGLE_TOLERANCE = 1e-4  # rad; float32 tables of the probe are off by 1e-7


@dataclass(frozen=True)
class ChannelLayout:
    """Where each channel of a rotary module's table comes from.

    Attributes:
        axes: number of position axes; 1 for plain positions.
        columns_U: every (pair, axis) that occurs in the table, sorted.
        column_C: index into `columns_U` for each channel.
        complex: whether the table is one complex tensor instead of a cos and a sin tensor.
        follows_dtype: whether the table has the dtype of the hidden states; if not, it has at least float32.
    """

    axes: int
    columns_U: tuple[tuple[int, int], ...]
    column_C: tuple[int, ...]
    complex: bool
    follows_dtype: bool

    @property
    def pairs(self) -> int:
        """Number of rotated pairs of channels."""
        return len({pair for pair, _ in self.columns_U})


def probe_channel_layout(module: Any, layer_type: str, order_P: Tensor, label: str) -> ChannelLayout:
    """Find out the layout of a rotary module's table by calling a copy of the module.

    Args:
        module: a rotary module of transformers.
        layer_type: the layer type whose table is probed; "all" if the module has one table for all layers.
        order_P: for each entry of the module's `inv_freq`, the index of its pair.
        label: how error messages call the module.

    Raises UnsupportedModelError if the table is not made of cos and sin of positions times frequencies.
    """
    return _Probe(module, layer_type, label).find_layout(order_P)


def inv_freq_name(layer_type: str) -> str:
    """Return the name of the buffer in which a rotary module keeps the inverse frequencies of a layer type."""
    return "inv_freq" if layer_type == configs.ALL_LAYERS else f"{layer_type}_inv_freq"


def layer_type_kwargs(layer_type: str) -> dict[str, str]:
    """Return the keyword arguments that select a layer type in the forward of a rotary module."""
    return {} if layer_type == configs.ALL_LAYERS else {"layer_type": layer_type}


def split_cos_sin(table: Any) -> tuple[Tensor, Tensor]:
    """Return cos and sin of a table that is either a pair of tensors or one complex tensor."""
    return table if isinstance(table, tuple) else (table.real, table.imag)


class _Probe:
    """A copy of a rotary module that is called with frequencies and positions of our choice."""

    def __init__(self, module: Any, layer_type: str, label: str) -> None:
        self.layer_type = layer_type
        self.label = label
        self.module = copy.deepcopy(module)
        log_factors = learned_log_factors(self.module)
        if log_factors is not None:
            log_factors.detach().zero_()
        inv_freq_P: Tensor = getattr(module, inv_freq_name(layer_type))
        self.pairs, self.device = len(inv_freq_P), inv_freq_P.device
        # The decorator around a forward updates dynamic frequencies and would overwrite those of the probe.
        self.forward = inspect.unwrap(type(module).forward)
        self.axes = self._count_axes()

    def find_layout(self, order_P: Tensor) -> ChannelLayout:
        # Each pair has a different angle inside (0, pi), which identifies it. An angle of 0 means that the channel
        # follows another axis, because only one axis is at position 1 and the others are at 0.
        angles_P = (torch.arange(self.pairs, dtype=torch.float64) + 1) / (self.pairs + 1) * math.pi
        angle_AC = torch.stack([self._channel_angles(angles_P, axis) for axis in range(self.axes)])
        axis_C = (angle_AC > _ANGLE_TOLERANCE).to(torch.int8).argmax(0)
        angle_C = angle_AC.gather(0, axis_C[None].long())[0]
        pair_C = (angle_C / math.pi * (self.pairs + 1) - 1).round().long()
        if not torch.allclose(angles_P[pair_C.clamp(0, self.pairs - 1)], angle_C, atol=_ANGLE_TOLERANCE):
            raise UnsupportedModelError(self.label, "a channel of its table belongs to no pair")
        if len(pair_C.unique()) < self.pairs:
            raise UnsupportedModelError(self.label, "its table lacks a pair")
        column_of_C = list(zip(order_P[pair_C].tolist(), axis_C.tolist(), strict=True))
        columns_U = sorted(set(column_of_C))
        table = self._call(angles_P, self._position_on_axis(0))
        half_precision_cos, _ = split_cos_sin(self._call(angles_P, self._position_on_axis(0), torch.bfloat16))
        return ChannelLayout(
            axes=self.axes,
            columns_U=tuple(columns_U),
            column_C=tuple(columns_U.index(column) for column in column_of_C),
            complex=not isinstance(table, tuple),
            follows_dtype=half_precision_cos.dtype == torch.bfloat16,
        )

    def _count_axes(self) -> int:
        """Return how many position axes the module merges into one table.

        With any other number it fails, or returns a table with an axis more.
        """
        for axes in (4, 3, 2):
            try:
                table = self._call(torch.ones(self.pairs), torch.ones(axes, 1, 1, dtype=torch.int64))
            except RuntimeError:
                continue
            if split_cos_sin(table)[0].ndim == 3:
                return axes
        return 1

    def _position_on_axis(self, axis: int) -> Tensor:
        """Return position ids of one token that is at position 1 on this axis and at 0 on the others."""
        if self.axes == 1:
            return torch.ones(1, 1, dtype=torch.int64)
        return (torch.arange(self.axes) == axis).long().view(self.axes, 1, 1)

    def _channel_angles(self, angles_P: Tensor, axis: int) -> Tensor:
        """Return the angle of each channel, [C], for the position of `_position_on_axis`."""
        cos, sin = split_cos_sin(self._call(angles_P, self._position_on_axis(axis)))
        return torch.atan2(sin.double(), cos.double()).flatten().cpu()

    def _call(self, inv_freq_P: Tensor, position_ids: Tensor, dtype: torch.dtype = torch.float32) -> Any:
        probe_inv_freq_P = inv_freq_P.to(self.device, torch.float32)
        setattr(self.module, inv_freq_name(self.layer_type), probe_inv_freq_P)
        if hasattr(self.module, "rope_init_fn"):  # PhiMoE calls it in every forward instead of reading the buffer
            self.module.rope_init_fn = lambda *_, **__: (probe_inv_freq_P, 1.0)
        x = torch.zeros(1, dtype=dtype, device=self.device)
        with torch.no_grad():
            return self.forward(self.module, x, position_ids.to(self.device), **layer_type_kwargs(self.layer_type))
