"""The relative positions that a position method describes, as a dense matrix."""

from __future__ import annotations

import numpy as np

from ropewalk.positions import PositionMethod


def relative_positions(method: PositionMethod, length: int, original_length: int) -> np.ndarray:
    """Return query position minus key position for every pair of a query at m and a key at n, [T, T] float64."""
    keys = np.arange(length)
    relative = np.zeros((length, length))
    for start, stop, resolved in method.blocks(original_length, 0, length):
        queries = np.arange(start, stop)
        relative[queries] = queries[:, None] - keys
        segment_stop = resolved.near_start(queries)
        for segment in resolved.far_segments:
            segment_start = segment.start(queries)
            is_inside = (keys >= segment_start[:, None]) & (keys < segment_stop[:, None])
            far = segment.query_position(queries)[:, None] - resolved.key_position(keys)
            relative[queries] = np.where(is_inside, far, relative[queries])
            segment_stop = segment_start
        assert not segment_stop.any()  # the ranges cover all keys
    return relative
