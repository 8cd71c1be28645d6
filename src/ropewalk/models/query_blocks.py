"""Split queries into blocks, and the keys of each block into rectangles and triangles of visible keys.

The keys of a query fall into ranges: near, and one for each far segment. Within a block, every edge of a range either
stays where it is or moves on with the query. So a range is a rectangle, in which every query of the block sees every
key, with a triangle at each edge that moves, which is causal attention over a square.

Shapes: t queries of a block, n keys of a range.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from ropewalk.positions import PositionMethod


@dataclass(frozen=True)
class KeyRange:
    """The keys that the queries of a block see in one range, as indices of keys.

    Attributes:
        pieces: (first key, one more than the last, triangle), where the triangle is as in `MergedAttention.add`.
        visible_tn: which of the keys of a single piece each query sees, for a range that is narrower than its
            triangles; None if the pieces say it.
    """

    pieces: tuple[tuple[int, int, str | None], ...]
    visible_tn: Tensor | None = None

    @property
    def end(self) -> int:
        """One more than the last key."""
        return self.pieces[-1][1]


@dataclass(frozen=True)
class QueryBlock:
    """Queries at the positions start .. end - 1 for which the position method resolves to the same options.

    Attributes:
        first_position: the position of the first key.
        start, end: positions of the queries.
        resolved: the resolved position method.
    """

    first_position: int
    start: int
    end: int
    resolved: PositionMethod

    @cached_property
    def positions_1t(self) -> Tensor:
        """The positions of the queries, [1, t]."""
        return torch.arange(self.start, self.end)[None]

    @cached_property
    def key_ranges(self) -> list[KeyRange]:
        """The keys of each range: near, and each far segment."""
        return [_key_range(start_t, end_t) for end_t, start_t in itertools.pairwise(self.edges())]

    def edges(self) -> list[Tensor]:
        """Return, for each query, one more than its last key and the first key of each range, [t] indices of keys."""
        queries_t = self.positions_1t[0]
        starts = [segment.start(queries_t) for segment in self.resolved.far_segments]
        edges = [queries_t + 1, self.resolved.near_start(queries_t), *starts]
        return [(edge_t - self.first_position).clip(min=0) for edge_t in edges]

    def regular_size(self) -> int:
        """Return for how many of the queries every edge of a range either stays where it is or moves on with them."""
        size = self.end - self.start
        if size == 1:
            return size
        for edge_t in self.edges():
            steps = edge_t.diff()
            irregular = ((steps != steps[:1]) | (steps < 0) | (steps > 1)).nonzero()
            if len(irregular):
                size = min(size, int(irregular[0]) + 1)
        return size


def split_queries(
    method: PositionMethod, original_length: int, first_position: int, start: int, end: int, size: int
) -> Iterator[QueryBlock]:
    """Split the queries at the positions start .. end - 1 into those that attend as in training, and blocks.

    Args:
        method: the position method.
        original_length: tokens the model was trained on.
        first_position: the position of the first key.
        start, end: the range of query positions.
        size: the most queries of a block past the original length.
    """
    if start < original_length:
        resolved = method.resolve(original_length, start + 1)
        yield QueryBlock(first_position, start, min(end, original_length), resolved)
    if end <= original_length:
        return
    for first, stop, resolved in method.blocks(original_length, max(start, original_length), end):
        position = first
        while position < stop:
            block = QueryBlock(first_position, position, min(stop, position + size), resolved)
            block = dataclasses.replace(block, end=position + block.regular_size())
            yield block
            position = block.end


def _key_range(start_t: Tensor, end_t: Tensor) -> KeyRange:
    """Return the range in which query i sees the keys start_t[i] .. end_t[i] - 1.

    The sides of a triangle have as many keys as there are queries, so that every query sees a key of it.
    """
    if bool((start_t >= end_t).all()):
        return KeyRange(())
    first_start, last_start = int(start_t[0]), int(start_t[-1])
    first_end, last_end = int(end_t[0]), int(end_t[-1])
    start = last_start + 1 if last_start > first_start else last_start
    end = first_end - 1 if last_end > first_end else first_end
    if start > end:
        key_n = torch.arange(first_start, last_end)
        visible_tn = (key_n >= start_t[:, None]) & (key_n < end_t[:, None])
        return KeyRange(((first_start, last_end, None),), visible_tn)
    pieces = (first_start, start, "upper"), (start, end, None), (end, last_end, "lower")
    return KeyRange(tuple(piece for piece in pieces if piece[0] < piece[1]))
