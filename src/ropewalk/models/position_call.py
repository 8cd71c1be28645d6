"""What the attention layers of a decoder must know about one forward call under a position method.

`PositionHooks` (position_hooks.py) creates it before the call from the positions of the new tokens and of those in the
cache, and it holds in the thread that made it, so several threads can use one model at the same time.

Shapes: as in far_keys.py; T queries, which are the last of the N tokens; P pairs.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Hashable
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from ropewalk.frequencies import Frequencies
from ropewalk.models.far_keys import FarKeys
from ropewalk.models.query_blocks import QueryBlock, split_queries
from ropewalk.ops.rotation import rotate
from ropewalk.positions import FarSegment, PositionMethod
from ropewalk.rope import Rope

_ROWS_PER_COMPARISON = 1024  # of a mask, so that comparing it needs little memory
_MAX_TABLE_SIZE = 2**27  # numbers that the tables of one call may hold before they are computed again


@dataclass(frozen=True, eq=False)
class RotatedPairs:
    """The pairs of channels that an attention layer rotates in q and k; layers with the same pairs share one object.

    Attributes:
        start: the first rotated channel of a head.
        layout: "half" or "interleaved", as in `rotate`.
        sign: 1, or -1 if attention rotates by the opposite angles (nanochat).
        pair_P: for each pair of channels, the index of its frequency.
        rope: the unscaled rotary embedding.
        frequencies: those that q and k have been rotated with.
    """

    start: int
    layout: str
    sign: int
    pair_P: tuple[int, ...]
    rope: Rope
    frequencies: Frequencies

    @cached_property
    def pair_indices(self) -> Tensor:
        """`pair_P` as a tensor on the CPU."""
        return torch.tensor(self.pair_P)

    def rotate(self, x_BHTD: Tensor, tables: tuple[Tensor, Tensor]) -> Tensor:
        """Return q or k rotated by further angles, whose cos and sin are [B or 1, T, P]."""
        rotated, _ = rotate(x_BHTD, tables=tables, layout=self.layout, start=self.start, inverse=self.sign < 0)
        return rotated


@dataclass(frozen=True)
class Rows:
    """Rows of a batch whose tokens are at the same positions, one after the other.

    Attributes:
        indices: the rows; None for all rows.
        first_index: the index of the first token that is no padding.
        first_position: the position of that token.
    """

    indices: tuple[int, ...] | None
    first_index: int
    first_position: int

    @property
    def selection(self) -> slice | list[int]:
        """An index of the batch: a slice, which copies nothing, where the rows follow each other."""
        if self.indices is None:
            return slice(None)
        if self.indices[-1] - self.indices[0] == len(self.indices) - 1:
            return slice(self.indices[0], self.indices[-1] + 1)
        return list(self.indices)


@dataclass
class PositionCall:
    """One forward call of a decoder.

    Attributes:
        method: the position method.
        original_length: tokens the model was trained on.
        positions_BN: the positions of all tokens so far, on the CPU; B is 1 while all rows agree.
        num_queries: the tokens of this call.
        far_keys: the rotated keys of the cache; None if the call has no cache.
        layer_calls: how many times each attention layer has been called.
    """

    method: PositionMethod
    original_length: int
    positions_BN: Tensor
    num_queries: int
    far_keys: FarKeys | None
    layer_calls: dict[int, int] = field(default_factory=dict)
    _tables: dict[Hashable, tuple[Tensor, Tensor]] = field(default_factory=dict)
    _logit_factors: dict[Hashable, Tensor] = field(default_factory=dict)
    _blocks: dict[tuple[int, int, int], list[QueryBlock]] = field(default_factory=dict)
    _rows: dict[int, tuple[Tensor, list[Rows] | None]] = field(default_factory=dict)  # by the id of a mask

    @property
    def num_tokens(self) -> int:
        """Tokens so far, N."""
        return self.positions_BN.shape[1]

    @property
    def query_positions(self) -> Tensor:
        """The positions of the tokens of this call, [B, T] on the CPU."""
        return self.positions_BN[:, -self.num_queries :]

    @cached_property
    def last_resolved_methods(self) -> set[PositionMethod]:
        """The position method, resolved for the last token of each row."""
        last_positions = self.positions_BN[:, -1].tolist()
        return {self.method.resolve(self.original_length, position + 1) for position in last_positions}

    def blocks(self, first_position: int, start: int, end: int, size: int) -> list[QueryBlock]:
        """Return the blocks of the queries start .. end - 1; the arguments are those of `split_queries`."""
        key = first_position, start, end
        if key not in self._blocks:
            self._blocks[key] = list(split_queries(self.method, self.original_length, first_position, start, end, size))
        return self._blocks[key]

    def count_layer_call(self, layer_index: int) -> int:
        """Return how many times this layer has been called before; a shared layer is called several times."""
        calls = self.layer_calls.get(layer_index, 0)
        self.layer_calls[layer_index] = calls + 1
        return calls

    def rotate_queries(
        self,
        pairs: RotatedPairs,
        resolved: PositionMethod,
        segment: FarSegment,
        queries: Tensor,
        positions_BT: Tensor,
        key: Hashable,
    ) -> Tensor:
        """Return queries rotated further, to the position at which they see the keys of a far segment.

        Args:
            pairs: the pairs of channels of the layer.
            resolved: the resolved position method.
            segment: the far segment.
            queries: [B, H, T, D].
            positions_BT: the positions of the queries, on the CPU.
            key: identifies the segment and the positions within this call.
        """

        def compute_angles() -> tuple[Tensor, float]:
            moved_BT = positions_BT.to(_angle_device(queries))
            angle_BTP = _far_angles(pairs, resolved, moved_BT, segment.query_position(moved_BT))
            phase_P = resolved.far_query_phase(pairs.rope)
            if phase_P is not None:
                angle_BTP = angle_BTP + torch.from_numpy(phase_P).to(moved_BT.device)
            far = resolved.far_frequencies(pairs.rope)
            # Queries take the attention factor for keys too, which may have been rotated in half precision.
            factor = 1.0 if far is None else (far.attention_factor / pairs.frequencies.attention_factor) ** 2
            return angle_BTP, factor

        return pairs.rotate(queries, self._cached_tables((pairs, resolved, key), compute_angles, pairs, queries))

    def rotate_keys(
        self,
        pairs: RotatedPairs,
        resolved: PositionMethod,
        rows: tuple[int, ...] | None,
        keys: Tensor,
        start: int,
        stop: int,
    ) -> Tensor:
        """Return the keys of the tokens start .. stop - 1, [B, K, N, D], rotated to their far positions.

        `rows`: those of the batch that the keys are of; None for all rows.
        """

        def compute_angles() -> tuple[Tensor, float]:
            of_rows = slice(None) if rows is None or len(self.positions_BN) == 1 else list(rows)
            positions_BN = self.positions_BN[of_rows, start:stop].to(_angle_device(keys))
            return _far_angles(pairs, resolved, positions_BN, resolved.key_position(positions_BN)), 1.0

        key = pairs, resolved, "keys", rows, start, stop
        return pairs.rotate(keys, self._cached_tables(key, compute_angles, pairs, keys))

    def logit_factor(
        self, resolved: PositionMethod, positions_BT: Tensor, query: Tensor, key: Hashable
    ) -> Tensor | None:
        """Return the factor of the logits of each query, [B, 1, T, 1]; None for 1.

        `key`: identifies the positions within this call. The layers share the factors.
        """
        if resolved.logit_scaling is None:
            return None
        dtype = torch.promote_types(query.dtype, torch.float32)
        key = resolved, key, query.device, dtype
        if key not in self._logit_factors:
            factor_BT = torch.from_numpy(resolved.logit_factor(positions_BT.numpy()))
            self._logit_factors[key] = factor_BT.to(query.device, dtype)[:, None, :, None]
        return self._logit_factors[key]

    def find_rows(self, mask: Tensor | None) -> list[Rows] | None:
        """Return the rows of the batch, grouped by their positions, if every row is one text that is read causally.

        Padding on the left is allowed. Returns None for any other mask or positions.

        Args:
            mask: the mask of the attention call, [B or 1, H or 1, T, N or more]; None for a causal one.
        """
        key = id(mask)
        if key not in self._rows:  # keep the mask, so that no other gets its id
            self._rows[key] = mask, self._find_rows(mask)  # type: ignore[assignment]
        return self._rows[key][1]

    def _find_rows(self, mask: Tensor | None) -> list[Rows] | None:
        first_B = [0] if mask is None else _find_left_padding(mask[..., : self.num_tokens])
        if first_B is None:
            return None
        positions_BN = self.positions_BN
        count = max(len(first_B), len(positions_BN))
        rows: dict[tuple[int, int], list[int]] = {}
        for row in range(count):
            first = first_B[row % len(first_B)]
            positions_N = positions_BN[row % len(positions_BN), first:]
            if not bool((positions_N.diff() == 1).all()):
                return None
            rows.setdefault((first, int(positions_N[0])), []).append(row)
        if len(rows) == 1:
            ((first, position),) = rows
            return [Rows(None, first, position)]
        return [Rows(tuple(indices), first, position) for (first, position), indices in rows.items()]

    def _cached_tables(
        self, key: Hashable, compute_angles: Callable[[], tuple[Tensor, float]], pairs: RotatedPairs, like: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Return cos and sin of angles, times a factor; the layers with the same pairs share them."""
        dtype = torch.float64 if like.dtype == torch.float64 else torch.float32
        key = key, like.device, dtype  # the layers of one model may lie on several devices
        if key not in self._tables:
            if sum(2 * cos_BNP.numel() for cos_BNP, _ in self._tables.values()) > _MAX_TABLE_SIZE:
                self._tables.clear()
            angle_BNP, factor = compute_angles()
            angle_BNP = angle_BNP[..., pairs.pair_indices.to(angle_BNP.device)]
            cos_BNP, sin_BNP = angle_BNP.cos() * factor, angle_BNP.sin() * factor
            self._tables[key] = cos_BNP.to(like.device, dtype), sin_BNP.to(like.device, dtype)
        return self._tables[key]


def _angle_device(like: Tensor) -> torch.device:
    """Return where to compute angles: on the device itself if it is sure to have float64."""
    return like.device if like.device.type == "cuda" else torch.device("cpu")


def _far_angles(
    pairs: RotatedPairs, resolved: PositionMethod, positions_BN: Tensor, far_positions_BN: Tensor
) -> Tensor:
    """Return the angles from trained to far positions, [B, N, dim/2] float64.

    Far positions need not be whole, so the angles are no fixed-point numbers; float64 is 1e-10 rad off at a million
    tokens.
    """
    trained_P = torch.tensor(pairs.frequencies.inv_freq).to(positions_BN.device)
    far = resolved.far_frequencies(pairs.rope)
    if far is None:
        return (far_positions_BN.double() - positions_BN)[..., None] * trained_P
    far_P = torch.tensor(far.inv_freq).to(positions_BN.device)
    return far_positions_BN.double()[..., None] * far_P - positions_BN.double()[..., None] * trained_P


def _find_left_padding(mask: Tensor) -> list[int] | None:
    """Return the padded tokens of each row, [B or 1], if the mask is causal with padding on the left; else None.

    Args:
        mask: [B or 1, H or 1, T, N], boolean or added to the logits.
    """
    if mask.shape[1] != 1:
        return None
    queries, keys = mask.shape[-2:]
    if not bool(_is_visible(mask[:, 0, -1, -1]).all()):
        return None
    first_B = _is_visible(mask[:, 0, -1]).to(torch.int8).argmax(-1)
    key_N = torch.arange(keys, device=mask.device)
    for start in range(0, queries, _ROWS_PER_COMPARISON):
        mask_BtN = mask[:, 0, start : start + _ROWS_PER_COMPARISON]
        query_t = torch.arange(start, start + mask_BtN.shape[1], device=mask.device) + keys - queries
        expected_BtN = (key_N <= query_t[:, None]) & (key_N >= first_B[:, None, None])
        visible_BtN = _is_visible(mask_BtN)
        # Padding sees nothing, or everything (a remedy against NaN); another text in the same row sees a part.
        sees_all_or_none_Bt = (visible_BtN == visible_BtN[..., :1]).all(-1)
        is_padding_Bt = (query_t < first_B[:, None]) & sees_all_or_none_Bt
        hidden_too = mask.dtype == torch.bool or bool((visible_BtN | _is_hidden(mask_BtN)).all())
        if not hidden_too or not bool(((visible_BtN == expected_BtN) | is_padding_Bt[..., None]).all()):
            return None
    return first_B.tolist()


def _is_visible(mask: Tensor) -> Tensor:
    return mask if mask.dtype == torch.bool else mask == 0


def _is_hidden(mask: Tensor) -> Tensor:
    return mask <= torch.finfo(mask.dtype).min / 2


class _Calls(threading.local):
    """The forward calls that run in this thread, by their hooks."""

    def __init__(self) -> None:
        self.by_hooks: WeakKeyDictionary[Any, PositionCall] = WeakKeyDictionary()


_calls = _Calls()


def begin_call(hooks: Any, call: PositionCall) -> None:
    """Let the attention layers of a decoder see this call, in this thread, until `end_call`."""
    _calls.by_hooks[hooks] = call


def current_call(hooks: Any) -> PositionCall | None:
    """Return the call that these hooks began in this thread; None outside of calls."""
    return _calls.by_hooks.get(hooks)


def end_call(hooks: Any) -> PositionCall | None:
    """End the call that these hooks began in this thread, and return it; None if there is none."""
    return _calls.by_hooks.pop(hooks, None)
