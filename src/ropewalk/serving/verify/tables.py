"""An engine's cos and sin against exact ones, in units of what rounding explains.

An engine forms an angle in float32: a relative error of 2^-24 in the inverse frequency or in the product turns into
`position x inv_freq x 2^-24` of the angle, and the table is rounded by 2^-24 once more. So the unit at a position is

    2^-24 x attention factor x (1 + position x inv_freq)

and a table that is as good as float32 allows is off by one or two of it everywhere, while one in float16, which a
thousand tokens on would drown in the rounding of angles, is off by thousands at the start.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ropewalk.frequencies import Frequencies

POSITIONS = 300
_FLOAT32 = 2.0**-24
_UNREADABLE = 1e30  # of a table whose shape fits no rotation meant: JSON has no infinity


@dataclass(frozen=True)
class TableError:
    """The greatest error of a table: in units of rounding, where, and by how much."""

    units: float
    position: int
    pair: int
    off_by: float


def positions_to(length: int, original: int | None) -> list[int]:
    """Positions below `length` to compare at: small ones, those around the original length, the last ones."""
    near = np.arange(original - 8, original + 8) if original else np.arange(0)
    spread = np.geomspace(64, max(64, length - 1), POSITIONS).round()
    chosen = np.unique(np.concatenate([np.arange(64), near, spread, np.arange(length - 16, length)]).astype(int))
    return [int(position) for position in chosen if 0 <= position < length]


def table_error(
    tables: Sequence[dict[str, Any]], expected: Sequence[Frequencies], positions: Sequence[int]
) -> TableError:
    """The greatest error, each of the frequencies meant against the table that is nearest to it.

    `tables`: of each kind of rotary module, `cos` and `sin`, [positions, dim/2] or [positions, dim].
    """
    errors = (min((_error(table, each, positions) for table in tables), key=lambda e: e.units) for each in expected)
    return max(errors, key=lambda error: error.units)


def _error(table: dict[str, Any], expected: Frequencies, positions: Sequence[int]) -> TableError:
    at = np.asarray(positions)
    exact = expected.cos_sin(at, "float64")
    given = [_of_pairs(np.asarray(table[part], dtype=np.float64), len(expected.inv_freq)) for part in ("cos", "sin")]
    if any(part.shape != exact[0].shape for part in given):
        return TableError(_UNREADABLE, 0, 0, 0.0)
    off = np.maximum(*(abs(part - right) for part, right in zip(given, exact, strict=True)))
    units = off / (_FLOAT32 * expected.attention_factor * (1 + at[:, None] * expected.inv_freq))
    units = np.where(np.isfinite(units), units, _UNREADABLE)
    worst, pair = np.unravel_index(int(units.argmax()), units.shape)
    return TableError(float(units.max()), int(at[worst]), int(pair), float(off[worst, pair]))


def _of_pairs(part: NDArray[np.float64], pairs: int) -> NDArray[np.float64]:
    """A channel for each pair: a table of all channels has every pair twice, side by side or half a head apart."""
    if part.shape[-1] != 2 * pairs:
        return part
    beside = np.array_equal(part[:, ::2], part[:, 1::2])
    return part[:, ::2] if beside else part[:, :pairs]
