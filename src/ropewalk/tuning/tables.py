"""Tables of cos and sin that learn: their divisors and attention factors are parameters of torch.

Shapes: as in models/layer_tables.py; S sets of parameters, 1 or one for each layer.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor, nn

from ropewalk.frequencies import Frequencies
from ropewalk.models.layer_tables import Table, TableLayers
from ropewalk.ops.angles import differentiable_tables


class LearnedTables(nn.Module):
    """The tables of all layers, as a differentiable function of a few numbers; a `compute_tables`.

    Attributes:
        log_divisor_SP: log of the divisor of each pair's unscaled frequency, float32.
        log_attention_factor_S: log of the attention factor, float32.
        positions_T: positions to use instead of those that the decoder passes; None to use those. A decoder would take
            positions that jump for several packed texts, and mask one from the other.
    """

    def __init__(self, layers: TableLayers, start: Frequencies, is_per_layer: bool) -> None:
        """Create the parameters.

        Args:
            layers: the layers that take the tables.
            start: the frequencies to start from.
            is_per_layer: whether each layer has a set of its own.
        """
        super().__init__()
        self._layers = layers
        sets = len(layers.layers) if is_per_layer else 1
        device = layers.rotary.device
        unscaled_P = layers.table.frequencies.inv_freq
        is_rotated_P = (unscaled_P > 0) & (start.inv_freq > 0)
        log_divisor_P = np.zeros(len(unscaled_P))
        log_divisor_P[is_rotated_P] = np.log(unscaled_P[is_rotated_P] / start.inv_freq[is_rotated_P])
        self._inv_freq_P = torch.tensor(unscaled_P, device=device)
        self.log_divisor_SP = nn.Parameter(
            torch.tensor(log_divisor_P, dtype=torch.float32, device=device).repeat(sets, 1)
        )
        self.log_attention_factor_S = nn.Parameter(torch.full((sets,), math.log(start.attention_factor), device=device))
        self.positions_T: Tensor | None = None

    def forward(self, x: Tensor, position_ids: Tensor) -> list[Table]:
        """Return the table of each layer, at these positions or at `positions_T`."""
        positions_BT = position_ids[0] if position_ids.ndim == 3 else position_ids  # the axes of a text are equal
        if self.positions_T is not None:
            positions_BT = self.positions_T[None]
        inv_freq_SP = self._inv_freq_P * torch.exp(-self.log_divisor_SP.double())
        factor_S = torch.exp(self.log_attention_factor_S.double())
        # One text at a time: the sets take the place of the rows.
        dtype = torch.promote_types(x.dtype, torch.float32)
        cos_STP, sin_STP = differentiable_tables(positions_BT[:1], inv_freq_SP, factor_S, dtype)
        pair_U = self._layers.table.pair_U
        tables = self._layers.table.to_channels(x, cos_STP[..., pair_U], sin_STP[..., pair_U])
        of_set: list[Table] = (
            list(tables.chunk(len(tables)))
            if isinstance(tables, Tensor)
            else list(zip(*(part.chunk(len(part)) for part in tables), strict=True))
        )
        return of_set * (len(self._layers.layers) // len(of_set))

    def divisors(self) -> list[list[float]]:
        """Return the divisors of each set."""
        return self.log_divisor_SP.detach().double().exp().tolist()

    def attention_factors(self) -> list[float]:
        """Return the attention factor of each set."""
        return self.log_attention_factor_S.detach().double().exp().tolist()
