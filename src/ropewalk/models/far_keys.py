"""Keys rotated to the positions at which far queries see them, kept beside a KV cache.

A far key depends on its own position and the parameters of the position method only, so it is rotated once and kept: a
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

_TOKENS_AHEAD = 256  # rotated beyond those needed, so that most calls that read one token rotate none
_GROWTH = 1.125  # of the buffer; at most so much memory is unused

RotateKeys = Callable[[Tensor, int, int], Tensor]  # rotates the keys from one token to another


@dataclass
class RotatedKeys:
    """The first `num_tokens` keys of one attention layer, rotated; the buffer [B, K, N, D] may be longer."""

    buffer: Tensor | None = None
    num_tokens: int = 0

    def extend(self, keys_BKND: Tensor, num_tokens: int, rotate_keys: RotateKeys) -> Tensor:
        """Return the first `num_tokens` keys, rotated; rotate those that are missing."""
        if torch.is_grad_enabled() and keys_BKND.requires_grad:
            return rotate_keys(keys_BKND[:, :, :num_tokens], 0, num_tokens)
        if self.num_tokens < num_tokens:
            start, stop = self.num_tokens, min(num_tokens + _TOKENS_AHEAD, keys_BKND.shape[2])
            self._append(rotate_keys(keys_BKND[:, :, start:stop], start, stop))
        assert self.buffer is not None
        return self.buffer[:, :, :num_tokens]

    def crop(self, num_tokens: int) -> None:
        """Keep the first `num_tokens` tokens."""
        self.num_tokens = min(self.num_tokens, num_tokens)

    def select_rows(self, indices_B: Tensor) -> None:
        """Keep these rows of the batch, in this order."""
        if self.buffer is not None:
            self.buffer = self.buffer.index_select(0, indices_B.to(self.buffer.device))

    def _append(self, rotated: Tensor) -> None:
        start, stop = self.num_tokens, self.num_tokens + rotated.shape[2]
        if start == 0:
            self.buffer = rotated
        else:
            assert self.buffer is not None
            if stop > self.buffer.shape[2] or (self.buffer.is_inference() and not torch.is_inference_mode_enabled()):
                batch, heads, _, channels = rotated.shape
                buffer = rotated.new_empty(batch, heads, max(stop, int(start * _GROWTH)), channels)
                buffer[:, :, :start] = self.buffer[:, :, :start]
                self.buffer = buffer
            self.buffer[:, :, start:stop] = rotated
        self.num_tokens = stop


@dataclass
class FarKeys:
    """The rotated keys of all attention layers that share a cache.

    Attributes:
        layers: for each attention layer, the rotated keys by the parameters of the position method.
    """

    layers: dict[Hashable, dict[Any, RotatedKeys]] = field(default_factory=dict)

    def of_layer(self, layer: Hashable, parameters: Any) -> RotatedKeys:
        """Return the rotated keys of a layer under these parameters; new ones if there are none."""
        return self.layers.setdefault(layer, {}).setdefault(parameters, RotatedKeys())

    def keep_only(self, layer: Hashable, parameters: Collection[Any]) -> None:
        """Drop the keys of a layer under all other parameters, which no later token needs."""
        kept = self.layers.get(layer, {})
        self.layers[layer] = {each: keys for each, keys in kept.items() if each in parameters}

    def crop(self, num_tokens: int) -> None:
        """Keep the first `num_tokens` tokens."""
        for keys in self._all():
            keys.crop(num_tokens)

    def select_rows(self, indices_B: Tensor) -> None:
        """Keep these rows of the batch, in this order."""
        for keys in self._all():
            keys.select_rows(indices_B)

    def _all(self) -> list[RotatedKeys]:
        return [keys for by_parameters in self.layers.values() for keys in by_parameters.values()]
