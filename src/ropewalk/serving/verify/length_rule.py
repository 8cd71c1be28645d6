"""Which length an engine computes the frequencies of a dynamic scaling for, for each request that it gets."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from ropewalk.serving.vllm_plugin.request_factors import RequestFactors


class TablePart(NamedTuple):
    """The rows of a cos and sin table that were computed for one length.

    Attributes:
        frequency_length: length that the frequencies of these rows are computed for, tokens.
        first_row: row of position 0.
        positions: positions to compare, tokens.
    """

    frequency_length: int
    first_row: int
    positions: list[int]

    @property
    def rows(self) -> list[int]:
        """The row of each position."""
        return [self.first_row + position for position in self.positions]


@dataclass(frozen=True)
class LengthRule:
    """How an engine follows the length of a request under a dynamic scaling. By default, it follows the text so far.

    Attributes:
        fixed_length: length at which the engine fixes the scaling when it starts, tokens.
        request_factors: factors of which the engine gives each request one when it arrives.
    """

    fixed_length: int | None = None
    request_factors: RequestFactors | None = None

    @property
    def follows_text(self) -> bool:
        """Whether the frequencies change while a text grows."""
        return self.fixed_length is None and self.request_factors is None

    def frequency_length(self, depth: int) -> int:
        """Return the length that the frequencies of a request are computed for, tokens.

        `depth`: tokens before the predicted one.
        """
        if self.request_factors is not None:
            return self.request_factors.lengths[self.request_factors.choose(depth + 1)]
        return self.fixed_length or depth

    def find_factors(self, depths: Sequence[int]) -> list[float] | None:
        """Return the factor of the request at each depth, or None if requests do not have their own."""
        factors = self.request_factors
        return None if factors is None else [factors.factors[factors.choose(depth + 1)] for depth in depths]

    def table_parts(self, length: int, positions: Sequence[int]) -> list[TablePart]:
        """Return the parts of the table of an engine that serves `length` tokens, with the positions to compare."""
        if self.request_factors is None:
            return [TablePart(length, 0, list(positions))]
        return [
            TablePart(covered, first_row, [position for position in positions if position < covered])
            for covered, first_row in zip(self.request_factors.lengths, self.request_factors.first_rows, strict=True)
        ]
