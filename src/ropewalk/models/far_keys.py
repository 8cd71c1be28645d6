"""Keys rotated to the positions at which far queries see them, kept beside a KV cache.

A far key depends on its own position and the resolved position method only, so it is rotated once and kept: a
second copy of the keys, half of the KV cache more. Rotating all far keys again for every token would save that memory
and take more time (`python -m benchmarks.position_methods` measures both). The copy follows the cache through
`KeyState`; it is made again from the cached keys if it is missing.

Shapes: B batch rows, K key heads, N cached tokens, D channels of a head.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Hashable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from ropewalk.models.token_buffer import TokenBuffer

_TOKENS_AHEAD = 256  # rotated beyond those needed, so that most calls that read one token rotate none

RotateKeys = Callable[[Tensor, int, int], Tensor]  # rotates the keys from one token to another


@dataclass
class RotatedKeys:
    """The first keys of one attention layer, rotated, [B, K, N, D]; None if there are none yet."""

    keys: Tensor | None = None
    _buffer: TokenBuffer = field(default_factory=TokenBuffer)

    def extend(self, keys_BKND: Tensor, num_tokens: int, rotate_keys: RotateKeys) -> Tensor:
        """Return the first `num_tokens` keys, rotated; rotate those that are missing."""
        if torch.is_grad_enabled() and keys_BKND.requires_grad:
            return rotate_keys(keys_BKND[:, :, :num_tokens], 0, num_tokens)
        start = 0 if self.keys is None else self.keys.shape[2]
        if start < num_tokens:
            stop = min(num_tokens + _TOKENS_AHEAD, keys_BKND.shape[2])
            rotated = rotate_keys(keys_BKND[:, :, start:stop], start, stop)
            self.keys = rotated if self.keys is None else self._buffer.append(self.keys, rotated)
        assert self.keys is not None
        return self.keys[:, :, :num_tokens]

    def crop(self, num_tokens: int) -> None:
        """Keep the first `num_tokens` tokens."""
        if self.keys is not None:
            self.keys = self.keys[:, :, :num_tokens]

    def select_rows(self, indices_B: Tensor) -> None:
        """Keep these rows of the batch, in this order."""
        if self.keys is not None:
            self.keys = self.keys.index_select(0, indices_B.to(self.keys.device))


@dataclass
class FarKeys:
    """The rotated keys of all attention layers that share a cache.

    Attributes:
        layers: for each attention layer, the rotated keys by the resolved position method and the rows of the batch
            that share them; None for all rows.
    """

    layers: dict[Hashable, dict[tuple[Any, tuple[int, ...] | None], RotatedKeys]] = field(default_factory=dict)

    def of_layer(self, layer: Hashable, resolved: Any, rows: tuple[int, ...] | None) -> RotatedKeys:
        """Return the rotated keys of some rows of a layer under a resolved method; new ones if there are none."""
        return self.layers.setdefault(layer, {}).setdefault((resolved, rows), RotatedKeys())

    def keep_only(self, layer: Hashable, resolved: Collection[Any]) -> None:
        """Drop the keys of a layer under all other resolved position methods."""
        kept = self.layers.get(layer, {})
        for key in [key for key in kept if key[0] not in resolved]:
            del kept[key]

    def crop(self, num_tokens: int) -> None:
        """Keep the first `num_tokens` tokens."""
        for keys in self._all():
            keys.crop(num_tokens)

    def select_rows(self, indices_B: Tensor) -> None:
        """Keep these rows of the batch, in this order."""
        if any(rows is not None for of_layer in self.layers.values() for _, rows in of_layer):
            self.layers.clear()  # rows may move to others with another resolved method; they are rotated again
        for keys in self._all():
            keys.select_rows(indices_B)

    def _all(self) -> list[RotatedKeys]:
        return [keys for by_method in self.layers.values() for keys in by_method.values()]
