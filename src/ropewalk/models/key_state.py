"""The state of the keys in a KV cache: their positions, and the frequencies that they were rotated with.

The state is an attribute of the cache. The class of the cache is replaced by a subclass that updates the state when
tokens or batch rows are removed or reordered. The state is copied and saved together with the cache.

Shapes: as in rotary_table.py; H heads, D channels of a head, N cached tokens.
"""

from __future__ import annotations

import weakref
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from ropewalk.models.cache_layout import RotatedChannels
from ropewalk.models.far_keys import FarKeys
from ropewalk.models.patching import Mixin, with_mixin
from ropewalk.models.rotary_table import RotaryTable, RowFrequencies, attention_factors
from ropewalk.models.token_buffer import TokenBuffer, append_in_place, can_overwrite
from ropewalk.ops.angles import cos_sin_of_fixed_point

_ATTRIBUTE = "_ropewalk_key_state"


@dataclass
class KeySnapshot:
    """Keys as attention cached them, for one rotary table.

    Keys that are rotated often are always rotated from their snapshot, so that rounding errors do not add up.

    Attributes:
        keys: [B, H, N, D] by index of the cache layer and name of the tensor; the last N tokens of the snapshot.
        angles_BTU: the angles that they were rotated by, in units of 2^-64 rotation.
        factors_BT1: the attention factors that they were multiplied by.
        buffers: the memory of all these tensors, in which they grow.
    """

    keys: dict[tuple[int, str], Tensor]
    angles_BTU: Tensor
    factors_BT1: Tensor
    buffers: dict[Any, TokenBuffer]

    @property
    def num_tokens(self) -> int:
        """Tokens from the beginning of the text to the end of the snapshot."""
        return self.angles_BTU.shape[1]

    def crop(self, num_tokens: int) -> None:
        """Keep the first `num_tokens` tokens of the text."""
        removed = max(0, self.num_tokens - num_tokens)
        self.keys = {at: keys[..., : max(0, keys.shape[-2] - removed), :] for at, keys in self.keys.items()}
        self.angles_BTU = self.angles_BTU[:, :num_tokens]
        self.factors_BT1 = self.factors_BT1[:, :num_tokens]

    def select_rows(self, indices_B: Tensor) -> None:
        """Keep these rows of the batch, in this order."""
        self.keys = {at: keys.index_select(0, indices_B.to(keys.device)) for at, keys in self.keys.items()}
        self.angles_BTU = _select_rows(self.angles_BTU, indices_B, 0)
        self.factors_BT1 = _select_rows(self.factors_BT1, indices_B, 0)


@dataclass
class KeyState:
    """The state of all keys in one cache.

    Attributes:
        model_fingerprint: identifies the model that computed the keys.
        row_frequencies: for each rotary table, the frequencies that all keys were rotated with.
        positions_BT: the position of every token so far, [B, T] or [A, B, T]; B is 1 while all rows agree.
        request_lengths: for each batch row, the tokens that its request may reach; None unless the policy is `request`.
        snapshots: for each rotary table whose keys are rotated often, the keys as attention cached them.
        rotations: how many times cached keys were rotated.
        far_keys: under a position method, the keys rotated to where far queries see them. Not copied or saved, because
            they follow from the cached keys.
        checked_by: the hooks of a decoder that found the fingerprint to be that of their model. Not copied or saved.
    """

    model_fingerprint: str
    row_frequencies: dict[str, RowFrequencies]
    positions_BT: Tensor = field(default_factory=lambda: torch.zeros(1, 0, dtype=torch.int64))
    request_lengths: tuple[int, ...] | None = None
    snapshots: dict[str, KeySnapshot] = field(default_factory=dict)
    rotations: int = 0
    far_keys: FarKeys | None = field(default=None, compare=False, repr=False)
    checked_by: weakref.ref[Any] | None = field(default=None, compare=False, repr=False)

    def __getstate__(self) -> dict[str, Any]:
        """Return the state for a copy, which another model may come to use."""
        return vars(self) | {"checked_by": None, "far_keys": None}

    @property
    def num_tokens(self) -> int:
        """Tokens whose positions are known."""
        return self.positions_BT.shape[-1]

    def append(self, positions_BT: Tensor) -> None:
        """Add the positions of tokens whose keys were rotated with the current frequencies."""
        self.positions_BT = _concat(self.positions_BT, positions_BT, -2, -1) if self.num_tokens else positions_BT

    def crop(self, num_tokens: int) -> None:
        """Keep the first `num_tokens` tokens."""
        self.positions_BT = self.positions_BT[..., :num_tokens]
        for snapshot in self.snapshots.values():
            snapshot.crop(num_tokens)
        if self.far_keys is not None:
            self.far_keys.crop(num_tokens)

    def select_rows(self, indices_B: Tensor) -> None:
        """Keep these rows of the batch, in this order."""
        rows = indices_B.tolist()
        self.positions_BT = _select_rows(self.positions_BT, indices_B, -2)
        self.row_frequencies = {name: _select_entries(entries, rows) for name, entries in self.row_frequencies.items()}
        if self.request_lengths is not None:
            self.request_lengths = _select_entries(self.request_lengths, rows)
        for snapshot in self.snapshots.values():
            snapshot.select_rows(indices_B)
        if self.far_keys is not None:
            self.far_keys.select_rows(indices_B)

    def rotate_keys(
        self,
        cache: Any,
        row_frequencies: Mapping[str, RowFrequencies],
        tables: Mapping[str, RotaryTable],
        channels: Sequence[RotatedChannels],
        keep_snapshot: bool,
    ) -> None:
        """Rotate every cached key from the frequencies that it has to new ones.

        Args:
            cache: the cache that this state belongs to.
            row_frequencies: the new frequencies, by rotary table.
            tables: the rotary tables of the decoder, by name.
            channels: the channels of the cache that depend on the frequencies.
            keep_snapshot: whether to keep a copy of the keys as attention cached them and rotate from that.
        """
        for name, table in tables.items():
            if row_frequencies[name] != self.row_frequencies[name]:
                of_table = [each for each in channels if each.table == name]
                if keep_snapshot or name in self.snapshots:
                    self._extend_snapshot(cache, name, table, of_table)
                self._rotate_table(cache, name, table, row_frequencies[name], of_table)
        self.row_frequencies = dict(row_frequencies)
        self.rotations += 1

    def _rotate_table(
        self,
        cache: Any,
        name: str,
        table: RotaryTable,
        row_frequencies: RowFrequencies,
        channels: Sequence[RotatedChannels],
    ) -> None:
        snapshot = self.snapshots.get(name)
        if snapshot is None:
            current_BTU = table.fixed_point_angles(self.positions_BT, self.row_frequencies[name])
            current_factors = _attention_factors(self.row_frequencies[name], table)
        else:
            current_BTU, current_factors = snapshot.angles_BTU, snapshot.factors_BT1
        difference_BTU = table.fixed_point_angles(self.positions_BT, row_frequencies) - current_BTU
        cos_sin_BTP: dict[Any, tuple[Tensor, Tensor]] = {}  # shared by the layers, which nearly always need the same
        for each in channels:
            layer = cache.layers[each.layer]
            cached = getattr(layer, each.tensor)
            key = each.columns_P, each.scaled, cached.device, cached.dtype
            if key not in cos_sin_BTP:
                ratio = _attention_factors(row_frequencies, table) / current_factors if each.scaled else 1.0
                columns_P = torch.tensor(each.columns_P, device=difference_BTU.device)
                precision = torch.float32 if cached.dtype.itemsize < 4 else torch.float64
                cos_BTU, sin_BTU = cos_sin_of_fixed_point(difference_BTU, ratio, precision)
                cos_sin_BTP[key] = (
                    cos_BTU[..., columns_P].to(cached.device, torch.float32),
                    sin_BTU[..., columns_P].to(cached.device, torch.float32),
                )
            first = self.num_tokens - cached.shape[-2]  # a sliding window has dropped the tokens before
            cos_BTP, sin_BTP = (part[:, first:] for part in cos_sin_BTP[key])
            if snapshot is None:
                rotated = each.rotate(cached, cos_BTP, sin_BTP, in_place=can_overwrite(cached))
            elif can_overwrite(cached):
                each.rotate_into(cached, snapshot.keys[each.layer, each.tensor], cos_BTP, sin_BTP)
                continue
            else:
                rotated = each.rotate(snapshot.keys[each.layer, each.tensor], cos_BTP, sin_BTP)
            setattr(layer, each.tensor, rotated)

    def _extend_snapshot(self, cache: Any, name: str, table: RotaryTable, channels: Sequence[RotatedChannels]) -> None:
        """Add the tokens since the last rotation, whose keys are still as attention cached them, to the snapshot."""
        snapshot = self.snapshots.get(name)
        start = 0 if snapshot is None else snapshot.num_tokens
        angles_BTU = table.fixed_point_angles(self.positions_BT[..., start:], self.row_frequencies[name])
        factors_BT1 = _attention_factors(self.row_frequencies[name], table).expand(-1, angles_BTU.shape[1], 1)
        if snapshot is None:
            snapshot = self.snapshots[name] = KeySnapshot({}, angles_BTU[:, :0], factors_BT1[:, :0], {})
        buffers = snapshot.buffers
        for each in channels:
            at, layer = (each.layer, each.tensor), cache.layers[each.layer]
            cached = getattr(layer, each.tensor)
            first = self.num_tokens - cached.shape[-2]  # a sliding window has dropped the tokens before
            new_keys = cached[..., max(start - first, 0) :, :]
            old_keys = snapshot.keys.get(at, cached[..., :0, :])
            snapshot_first = start - old_keys.shape[-2]
            kept_keys = old_keys[..., max(first - snapshot_first, 0) :, :]
            snapshot.keys[at] = buffers.setdefault(at, TokenBuffer()).append(kept_keys, new_keys)
            append_in_place(layer)
        for part_name, new_part in (("angles_BTU", angles_BTU), ("factors_BT1", factors_BT1)):
            parts = _with_equal_rows(getattr(snapshot, part_name), new_part)
            setattr(snapshot, part_name, buffers.setdefault(part_name, TokenBuffer()).append(*parts))


class _UpdatesKeyState(Mixin):
    """Mixed into the class of a cache; repeats on the key state what is done to the cache."""

    def crop(self: Any, *args: Any, **kwargs: Any) -> None:
        before = tokens_seen(self)
        super().crop(*args, **kwargs)  # type: ignore[misc]
        state = get_key_state(self)
        if state is not None:
            state.crop(state.num_tokens - (before - tokens_seen(self)))

    def reorder_cache(self: Any, beam_idx: Tensor) -> None:
        super().reorder_cache(beam_idx)  # type: ignore[misc]
        _select_state_rows(self, beam_idx)

    def batch_select_indices(self: Any, indices: Tensor) -> None:
        super().batch_select_indices(indices)  # type: ignore[misc]
        indices = torch.as_tensor(indices)
        _select_state_rows(self, indices.nonzero()[:, 0] if indices.dtype == torch.bool else indices)

    def batch_repeat_interleave(self: Any, repeats: int) -> None:
        first = _first_attention_layer(self)
        batch_size = 1 if first is None else len(first.keys)
        super().batch_repeat_interleave(repeats)  # type: ignore[misc]
        _select_state_rows(self, torch.arange(batch_size).repeat_interleave(repeats))

    def reset(self: Any) -> None:
        super().reset()  # type: ignore[misc]
        vars(self).pop(_ATTRIBUTE, None)


def get_key_state(cache: Any) -> KeyState | None:
    """Return the state of the cache's keys; None if no extended model has filled the cache."""
    return getattr(cache, _ATTRIBUTE, None)


def attach_key_state(cache: Any, state: KeyState) -> None:
    """Store the state on the cache, and keep it up to date from now on."""
    setattr(cache, _ATTRIBUTE, state)
    cache_class: Any = type(cache)
    if not issubclass(cache_class, _UpdatesKeyState):
        cache.__class__ = with_mixin(_UpdatesKeyState, cache_class)


def tokens_seen(cache: Any) -> int:
    """Return how many tokens the cache has received, including those that a sliding window has dropped."""
    first = _first_attention_layer(cache)
    return 0 if first is None else int(first.get_seq_length())


def _first_attention_layer(cache: Any) -> Any:
    return next((layer for layer in cache.layers if isinstance(getattr(layer, "keys", None), Tensor)), None)


def _select_state_rows(cache: Any, indices_B: Tensor) -> None:
    state = get_key_state(cache)
    if state is not None:
        state.select_rows(indices_B)


def _attention_factors(row_frequencies: RowFrequencies, table: RotaryTable) -> Tensor:
    factors = torch.as_tensor(attention_factors(row_frequencies), dtype=torch.float32)
    return factors.reshape(-1, 1, 1).to(table.high_RU.device)


def _select_rows(tensor: Tensor, indices_B: Tensor, dim: int) -> Tensor:
    return tensor if tensor.shape[dim] == 1 else tensor.index_select(dim, indices_B.to(tensor.device))


def _select_entries(entries: tuple[Any, ...], rows: list[int]) -> tuple[Any, ...]:
    return entries if len(entries) == 1 else tuple(entries[row] for row in rows)


def _concat(one: Tensor, other: Tensor, batch_dim: int, token_dim: int) -> Tensor:
    """Concatenate along the tokens; a tensor with a single row is repeated for every row of the other."""
    return torch.cat(_with_equal_rows(one, other, batch_dim), dim=token_dim)


def _with_equal_rows(one: Tensor, other: Tensor, batch_dim: int = 0) -> tuple[Tensor, Tensor]:
    """Return both tensors; one with a single row is repeated for every row of the other."""
    rows = max(one.shape[batch_dim], other.shape[batch_dim])
    if one.shape[batch_dim] != rows:
        one = one.repeat_interleave(rows, dim=batch_dim)
    if other.shape[batch_dim] != rows:
        other = other.repeat_interleave(rows, dim=batch_dim)
    return one, other
