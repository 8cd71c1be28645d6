"""What the keys of a KV cache carry: where they stand, and the frequencies they are turned by.

It is kept on the cache, whose class becomes one that keeps it in step when tokens or rows are taken away, and it goes
with the cache when that is copied or saved.

Shapes: as in tables.py, and H heads, D channels of a head.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from ropewalk.models.cache_layout import RotatedChannels
from ropewalk.models.patching import Mixin, mixed
from ropewalk.models.rotary_table import RotaryTable, Rows, factors
from ropewalk.ops.angles import cos_sin

_SLOT = "_ropewalk"
# The cache layers whose tensors are as the attention wrote them, and are read anew at every step.
_CAN_FOLLOW = {
    "DynamicLayer",
    "DynamicSlidingWindowLayer",
    "DynamicIndexedLayer",
    "LinearAttentionAndFullAttentionLayer",
    "LinearAttentionAndSlidingWindowAttentionLayer",
}


@dataclass
class KeySnapshot:
    """The keys that one table turns, as they were cached: turned from these, rounding does not add up.

    Attributes:
        keys: by cache layer and tensor, [B, H, n, D]: the last n of the tokens that are covered.
        reduced_BTU, factor_BT1: the angles and attention factors that they carry.
    """

    keys: dict[tuple[int, str], Tensor]
    reduced_BTU: Tensor
    factor_BT1: Tensor

    @property
    def end(self) -> int:
        """Tokens that are covered, from the beginning of the text."""
        return self.reduced_BTU.shape[1]

    def crop(self, count: int) -> None:
        gone = max(0, self.end - count)
        self.keys = {at: keys[..., : max(0, keys.shape[-2] - gone), :] for at, keys in self.keys.items()}
        self.reduced_BTU, self.factor_BT1 = self.reduced_BTU[:, :count], self.factor_BT1[:, :count]

    def pick(self, indices_B: Tensor) -> None:
        self.keys = {at: keys.index_select(0, indices_B.to(keys.device)) for at, keys in self.keys.items()}
        self.reduced_BTU, self.factor_BT1 = (
            _picked(each, indices_B, 0) for each in (self.reduced_BTU, self.factor_BT1)
        )


@dataclass
class KeyState:
    """What a cache's keys carry.

    Attributes:
        model: the fingerprint of the model that they come from.
        rows: for each table, the frequencies that all keys of a row are turned by.
        positions_BT: of every token so far, [B, T] (or [A, B, T]); B is 1 while the rows agree.
        request: for each row, the tokens that the request may come to, where a policy fixes them.
        references: of the tables that turn often.
        turns: how often keys were turned.
    """

    model: str
    rows: dict[str, Rows]
    positions_BT: Tensor = field(default_factory=lambda: torch.zeros(1, 0, dtype=torch.int64))
    request: tuple[int, ...] | None = None
    references: dict[str, KeySnapshot] = field(default_factory=dict)
    turns: int = 0

    @property
    def count(self) -> int:
        """Tokens so far."""
        return self.positions_BT.shape[-1]

    def append(self, positions_BT: Tensor) -> None:
        """More tokens, turned by the same frequencies."""
        self.positions_BT = _joined(self.positions_BT, positions_BT, -2) if self.count else positions_BT

    def crop(self, count: int) -> None:
        """Keep the first `count` tokens."""
        self.positions_BT = self.positions_BT[..., :count]
        for reference in self.references.values():
            reference.crop(count)

    def pick(self, indices_B: Tensor) -> None:
        """Keep these rows of the batch, in this order."""
        chosen = indices_B.tolist()
        self.positions_BT = _picked(self.positions_BT, indices_B, -2)
        self.rows = {name: _of_each(rows, chosen) for name, rows in self.rows.items()}
        self.request = self.request and _of_each(self.request, chosen)
        for reference in self.references.values():
            reference.pick(indices_B)

    def turn(
        self,
        cache: Any,
        rows: Mapping[str, Rows],
        tables: Mapping[str, RotaryTable],
        channels: Sequence[RotatedChannels],
        keep_reference: bool,
    ) -> None:
        """Turn every cached key from the frequencies that it carries to `rows`."""
        for name, table in tables.items():
            if rows[name] != self.rows[name]:
                turned = [each for each in channels if each.table == name]
                if keep_reference or name in self.references:
                    self._refer(cache, name, table, turned)
                self._turn(cache, name, table, rows[name], turned)
        self.rows = dict(rows)
        self.turns += 1

    def _turn(self, cache: Any, name: str, table: RotaryTable, rows: Rows, turned: Sequence[RotatedChannels]) -> None:
        reference = self.references.get(name)
        if reference is None:
            carried_BTU, factor = table.reduced(self.positions_BT, self.rows[name]), _factor(self.rows[name], table)
        else:
            carried_BTU, factor = reference.reduced_BTU, reference.factor_BT1
        to_turn_BTU = table.reduced(self.positions_BT, rows) - carried_BTU
        tables_BTP: dict[Any, tuple[Tensor, Tensor]] = {}  # nearly always one, for all layers
        for each in turned:
            layer = cache.layers[each.layer]
            live = getattr(layer, each.tensor)
            if (where := (each.columns_P, each.scaled, live.device)) not in tables_BTP:
                ratio = _factor(rows, table) / factor if each.scaled else 1.0
                cos_BTU, sin_BTU = cos_sin(to_turn_BTU, ratio)
                columns_P = torch.tensor(each.columns_P, device=cos_BTU.device)
                tables_BTP[where] = tuple(  # type: ignore[assignment]
                    part[..., columns_P].to(live.device, torch.float32) for part in (cos_BTU, sin_BTU)
                )
            cos_BTP, sin_BTP = (part[:, self.count - live.shape[-2] :] for part in tables_BTP[where])
            if reference is None:
                keys = each.turn(live, cos_BTP, sin_BTP, in_place=_writable(live))
            else:
                keys = each.turn(reference.keys[each.layer, each.tensor], cos_BTP, sin_BTP)
            setattr(layer, each.tensor, keys)

    def _refer(self, cache: Any, name: str, table: RotaryTable, turned: Sequence[RotatedChannels]) -> None:
        """Take the tokens since the last turn, which are as they were cached, into the reference."""
        held = self.references.get(name)
        end = 0 if held is None else held.end
        reduced_BTU = table.reduced(self.positions_BT[..., end:], self.rows[name])
        factor_BT1 = _factor(self.rows[name], table).expand(-1, reduced_BTU.shape[1], 1)
        keys = {}
        for each in turned:
            live, at = getattr(cache.layers[each.layer], each.tensor), (each.layer, each.tensor)
            first = self.count - live.shape[-2]  # a sliding window has let go of those before
            keys[at] = live[..., max(end - first, 0) :, :]
            if held is not None:
                began = end - held.keys[at].shape[-2]
                keys[at] = torch.cat([held.keys[at][..., max(first - began, 0) :, :], keys[at]], dim=-2)
        if held is not None:
            reduced_BTU, factor_BT1 = (
                _joined(held.reduced_BTU, reduced_BTU, 0, 1),
                _joined(held.factor_BT1, factor_BT1, 0, 1),
            )
        self.references[name] = KeySnapshot(keys, reduced_BTU, factor_BT1)


class _InStep(Mixin):
    """Mixed into the class of a cache: what is carried follows what is done to it."""

    def crop(self: Any, *args: Any, **kwargs: Any) -> None:
        before = tokens_seen(self)
        super().crop(*args, **kwargs)  # type: ignore[misc]
        held = get_key_state(self)
        if held is not None:
            held.crop(held.count - (before - tokens_seen(self)))

    def reorder_cache(self: Any, beam_idx: Tensor) -> None:
        super().reorder_cache(beam_idx)  # type: ignore[misc]
        _pick(self, beam_idx)

    def batch_select_indices(self: Any, indices: Tensor) -> None:
        super().batch_select_indices(indices)  # type: ignore[misc]
        _pick(self, torch.as_tensor(indices))

    def batch_repeat_interleave(self: Any, repeats: int) -> None:
        batch = _batch(self)
        super().batch_repeat_interleave(repeats)  # type: ignore[misc]
        _pick(self, torch.arange(batch).repeat_interleave(repeats))

    def reset(self: Any) -> None:
        super().reset()  # type: ignore[misc]
        vars(self).pop(_SLOT, None)


def get_key_state(cache: Any) -> KeyState | None:
    """What the cache's keys carry, as far as an extended model has seen them."""
    return getattr(cache, _SLOT, None)


def attach_key_state(cache: Any, carried: KeyState) -> None:
    """Keep it on the cache."""
    setattr(cache, _SLOT, carried)
    kind: Any = type(cache)
    if not issubclass(kind, _InStep):
        cache.__class__ = mixed(_InStep, kind)


def tokens_seen(cache: Any) -> int:
    """Tokens that the cache holds, or has held in a sliding window."""
    attending = (layer for layer in cache.layers if isinstance(getattr(layer, "keys", None), Tensor))
    first = next(attending, None)
    return 0 if first is None else int(first.get_seq_length())


def cannot_follow(cache: Any, channels: Sequence[RotatedChannels]) -> str | None:
    """Why the keys of such a cache cannot be turned; None when they can."""
    if getattr(cache, "offloading", False):
        return "they are in an offloaded cache"
    for each in channels:
        kind = type(cache.layers[each.layer]).__name__
        if kind not in _CAN_FOLLOW:
            return f"they are in a {kind}, which does not hold them as the attention wrote them"
    return None


def _pick(cache: Any, indices: Tensor) -> None:
    held = get_key_state(cache)
    if held is not None:
        held.pick(indices.nonzero()[:, 0] if indices.dtype == torch.bool else indices)


def _batch(cache: Any) -> int:
    return next((len(layer.keys) for layer in cache.layers if isinstance(getattr(layer, "keys", None), Tensor)), 1)


def _factor(rows: Rows, table: RotaryTable) -> Tensor:
    """The attention factor of each row, [R, 1, 1], where the table is."""
    return torch.as_tensor(factors(rows), dtype=torch.float32).reshape(-1, 1, 1).to(table.high_RU.device)


def _writable(cached: Tensor) -> bool:
    """Whether it can be overwritten: no gradient may need it, it is of this mode, and no rows share their memory."""
    of_this_mode = not cached.is_inference() or torch.is_inference_mode_enabled()
    return not torch.is_grad_enabled() and of_this_mode and 0 not in cached.stride()


def _picked(held: Tensor, indices_B: Tensor, dim: int) -> Tensor:
    return held if held.shape[dim] == 1 else held.index_select(dim, indices_B.to(held.device))


def _of_each(rows: tuple[Any, ...], chosen: list[int]) -> tuple[Any, ...]:
    return rows if len(rows) == 1 else tuple(rows[row] for row in chosen)


def _joined(one: Tensor, other: Tensor, batch: int, tokens: int = -1) -> Tensor:
    """Along the tokens; where only one is of several rows, the other is of each of them."""
    rows = max(one.shape[batch], other.shape[batch])
    parts = [each if each.shape[batch] == rows else each.repeat_interleave(rows, dim=batch) for each in (one, other)]
    return torch.cat(parts, dim=tokens)
