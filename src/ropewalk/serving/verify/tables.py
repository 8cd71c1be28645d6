"""Compare the cos and sin tables of an engine with exact ones, in units of float32 rounding.

An engine that forms angles in float32 rounds twice. The angle is off by about `2^-24 x position x inv_freq`, from a
relative error of 2^-24 in the inverse frequency or in the product, and the table entry is rounded by another 2^-24. The
unit of comparison is therefore

    2^-24 x attention factor x (1 + position x inv_freq)

A table that is as good as float32 allows is off by one or two units everywhere. A float16 table is off by thousands of
units at small positions; in absolute terms it would not stand out from the rounding of angles at large positions.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from operator import attrgetter
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ropewalk.frequencies import Frequencies

_NUM_SPREAD_POSITIONS = 300
_FLOAT32_ROUNDING = 2.0**-24
_NOT_COMPARABLE = 1e30  # deviation of a table with another shape or with NaN; JSON has no infinity


@dataclass(frozen=True)
class TableDeviation:
    """The largest deviation of a table from the exact one.

    Attributes:
        roundings: size, in units of float32 rounding.
        position: where it is, tokens.
        pair: index of the rotary pair.
        absolute: size, as a plain difference of cos or sin.
    """

    roundings: float
    position: int
    pair: int
    absolute: float


def choose_positions(length: int, original_length: int | None) -> list[int]:
    """Choose positions below `length` to compare at: the first 64, 300 spread, around the original length, the last."""
    around = np.arange(original_length - 8, original_length + 8) if original_length else np.arange(0)
    spread = np.geomspace(64, max(64, length - 1), _NUM_SPREAD_POSITIONS).round()
    last = np.arange(length - 16, length)
    chosen = np.unique(np.concatenate([np.arange(64), around, spread, last]).astype(int))
    return [int(position) for position in chosen if 0 <= position < length]


def largest_deviation(
    tables: Sequence[dict[str, Any]], expected: Sequence[Frequencies], positions: Sequence[int]
) -> TableDeviation:
    """Return the largest deviation between the tables of an engine and the expected frequencies.

    An engine does not say which table belongs to which layer type, so each of the expected frequencies is compared with
    the table that is closest to it.

    Args:
        tables: `cos` and `sin` of each kind of rotary module, [positions, dim/2] or [positions, dim].
        expected: frequencies of each layer type.
        positions: positions of the tables.
    """
    size = attrgetter("roundings")
    deviations = [min((_deviation(table, layer, positions) for table in tables), key=size) for layer in expected]
    return max(deviations, key=size)


def _deviation(table: dict[str, Any], expected: Frequencies, positions: Sequence[int]) -> TableDeviation:
    exact_cos_TP, exact_sin_TP = expected.cos_sin(positions, "float64")
    cos_TP, sin_TP = (_one_channel_per_pair(table[name], len(expected.inv_freq)) for name in ("cos", "sin"))
    if cos_TP.shape != exact_cos_TP.shape or sin_TP.shape != exact_sin_TP.shape:
        return TableDeviation(_NOT_COMPARABLE, 0, 0, 0.0)
    absolute_TP = np.maximum(abs(cos_TP - exact_cos_TP), abs(sin_TP - exact_sin_TP))
    angles_TP = np.asarray(positions)[:, None] * expected.inv_freq
    roundings_TP = absolute_TP / (_FLOAT32_ROUNDING * expected.attention_factor * (1 + angles_TP))
    roundings_TP = np.where(np.isfinite(roundings_TP), roundings_TP, _NOT_COMPARABLE)
    row, pair = np.unravel_index(int(roundings_TP.argmax()), roundings_TP.shape)
    return TableDeviation(
        float(roundings_TP[row, pair]), int(positions[int(row)]), int(pair), float(absolute_TP[row, pair])
    )


def _one_channel_per_pair(values: Any, num_pairs: int) -> NDArray[np.float64]:
    """Return [positions, dim/2] of a table that may hold both channels of each pair, [positions, dim]."""
    table = np.asarray(values, dtype=np.float64)
    if table.shape[-1] != 2 * num_pairs:
        return table
    is_interleaved = np.array_equal(table[:, ::2], table[:, 1::2])
    return table[:, ::2] if is_interleaved else table[:, :num_pairs]
