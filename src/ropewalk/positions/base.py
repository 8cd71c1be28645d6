"""The base class of all position methods.

A position method leaves the frequencies and the weights as they are and changes the distances that attention sees. For
a query at m, the keys are split by position into consecutive ranges:

    [0, start of the last far segment) ... [start of the first far segment, near_start)  [near_start, m]
     far, farthest                          far, nearest                                  near

Near keys have their trained distance, m - n. For a far key at n, the query is rotated as if it were at
`query_position(m)` and the key as if it were at `key_position(n)`, so that no distance exceeds those of the training. A
query at a position below the original length has no far keys: short texts are exact, and a text that is read at once
gives the same result as the same text read through a KV cache.
"""

from __future__ import annotations

import dataclasses
import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, ClassVar, Self

import numpy as np
from numpy.typing import NDArray

from ropewalk.errors import InputError
from ropewalk.frequencies import Frequencies
from ropewalk.method import Method
from ropewalk.rope import Rope
from ropewalk.scaling.logit_scaling import parse_logit_scaling

# Positions are arrays of numpy or tensors of torch, integers [...]. The formulas below use only what both have.
Positions = Any

_FACTOR_STEP = 0.25  # a factor that follows the text grows in steps of it, so that far keys are seldom rotated again


@dataclass(frozen=True)
class FarSegment:
    """A range of far keys that share one position of the query.

    Attributes:
        start: maps query positions to the position of the first key of the range, integers [...].
        query_position: maps query positions to the position by which the query is rotated, [...].
    """

    start: Callable[[Positions], Positions]
    query_position: Callable[[Positions], Positions]


@dataclass(frozen=True, repr=False)
class PositionMethod(Method, ABC):
    """One position method with its options.

    A subclass is a frozen dataclass (with repr=False) that sets the class variables of `Method`. Being defined in this
    package registers it. It implements `choose_options`, which fills in the options that are None, and the methods that
    describe the distances; those are called on a resolved method only.

    Class variables:
        engines: a clause on the serving engines that have the method; empty if none has.

    Args:
        logit_scaling: spec of a `LogitScaling`, such as "log-n", which multiplies the attention logits of queries past
            the original length, near and far. A temperature that a model applies itself, such as
            `llama_4_scaling_beta`, stays in place with or without it.
    """

    engines: ClassVar[str] = ""

    logit_scaling: str | None = field(default=None, kw_only=True)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.logit_scaling is not None:
            parse_logit_scaling(self.logit_scaling)

    def resolve(self, original_length: int, length: int) -> Self:
        """Return the method with every option filled in for texts of `length` tokens.

        Options that are set stay as they are. The result is equal for all lengths if no option depends on the length.

        Args:
            original_length: tokens the model was trained on; the option of that name overrides it.
            length: tokens of the text so far.

        Raises InputError if an option does not fit the original length.
        """
        original_length = self.original_length or original_length
        options = self.choose_options(original_length, length)
        return dataclasses.replace(self, original_length=original_length, **options)

    @abstractmethod
    def choose_options(self, original_length: int, length: int) -> dict[str, Any]:
        """Return the options that `resolve` fills in, by name; those that are set keep their values.

        An option that follows the text must grow with the length, or stay, so that `blocks` finds where it changes.
        """

    @abstractmethod
    def near_start(self, queries: Positions) -> Positions:
        """Return the position of the first near key of each query, integers [...]; 0 below the original length.

        It never decreases from one query position to the next.
        """

    @property
    @abstractmethod
    def far_segments(self) -> tuple[FarSegment, ...]:
        """The ranges of far keys, the nearest first. The last one starts at 0."""

    @abstractmethod
    def key_position(self, keys: Positions) -> Positions:
        """Return the positions by which far keys are rotated, [...]."""

    def far_frequencies(self, rope: Rope) -> Frequencies | None:
        """Return the frequencies that rotate far queries and keys; None for the trained ones.

        The attention factor multiplies both, and therefore the far logits by its square.
        """
        return None

    def far_query_phase(self, rope: Rope) -> NDArray[np.float64] | None:
        """Return the angle, in rad, to add to the rotation of far queries, [dim/2]; None for 0."""
        return None

    def logit_factor(self, queries: Positions) -> NDArray[np.float64] | None:
        """Return the factor of the logits of each query, near and far, [...] float64 of numpy; None for 1."""
        if self.logit_scaling is None:
            return None
        assert self.original_length is not None  # resolved
        factors = parse_logit_scaling(self.logit_scaling).factors(queries, self.original_length)
        return np.where(self.is_past_training(np.asarray(queries)), factors, 1.0)

    def blocks(self, original_length: int, start: int, stop: int) -> list[tuple[int, int, Self]]:
        """Split a range of queries where the options change, which follow the text if they are not set.

        A query at m is resolved for the text up to and including it, m + 1 tokens.

        Args:
            original_length: tokens the model was trained on.
            start, stop: the range of query positions, with start < stop.

        Returns a list of (start, stop, resolved method) that covers the range.
        """
        blocks = []
        while start < stop:
            resolved = self.resolve(original_length, start + 1)
            low, high = start + 1, stop  # the block ends in [low, high]; options change monotonically with the length
            if low == stop or self.resolve(original_length, stop) == resolved:
                low = stop
            while low < high:
                middle = (low + high + 1) // 2
                if self.resolve(original_length, middle) == resolved:
                    low = middle
                else:
                    high = middle - 1
            blocks.append((start, low, resolved))
            start = low
        return blocks

    def is_past_training(self, queries: Positions) -> Positions:
        """Return which queries are at positions past the original length, booleans [...]."""
        return queries >= self.original_length


class WindowedMethod(PositionMethod):
    """A position method with one far segment, behind a window of near keys. A subclass has the option `window`."""

    window: int | None

    def near_start(self, queries: Positions) -> Positions:
        return (queries - self.window + 1).clip(min=0) * self.is_past_training(queries)

    @property
    def far_segments(self) -> tuple[FarSegment, ...]:
        return (FarSegment(lambda queries: queries * 0, self.query_position),)

    @abstractmethod
    def query_position(self, queries: Positions) -> Positions:
        """Return the positions by which queries are rotated for far keys, [...]."""


def resolve_window(window: int | None, original_length: int) -> int:
    """Return the window in tokens, by default half of the original length."""
    return window or max(1, original_length // 2)


def smallest_factor(original_length: int, window: int, length: int, step: float = _FACTOR_STEP) -> float:
    """Return the smallest multiple of `step` by which to divide far positions so that no distance exceeds L.

    A key at 0 and a query at T - 1 come to the distance (T - 1 - W) / k + W, or up to one more with whole groups. As in
    Self-Extend (a length of (L - W) k + W), this is at most L: one more than the largest trained distance.

    Args:
        original_length: L.
        window: W, the distance from which on distances are divided.
        length: T.

    Raises InputError for a window that leaves no trained distances for far keys.
    """
    if window >= original_length:
        raise InputError("window", window, f"fewer tokens than the original length, {original_length:,}")
    if length <= original_length:
        return 1.0
    return math.ceil((length - window) / (original_length - window) / step) * step
