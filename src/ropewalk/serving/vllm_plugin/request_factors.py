"""The factors that the requests of one server may get, and the rows of the shared rotary table for each of them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

from ropewalk.errors import InputError, check_length, check_number

ROPE_TYPE = "ropewalk_dynamic_yarn"
TESTED_VERSIONS = ("0.32.0", "0.33.0")  # of vLLM; the plugin refuses all others


@dataclass(frozen=True)
class RequestFactors:
    """The list of factors of a model.

    Attributes:
        original_length: tokens the model was trained on.
        factors: ascending; the first is 1, no scaling.
    """

    original_length: int
    factors: tuple[float, ...]

    def __post_init__(self) -> None:
        check_length("original_max_position_embeddings", self.original_length)
        for factor in self.factors:
            check_number("factors", factor, minimum=1)
        if self.factors[:1] != (1,) or list(self.factors) != sorted(set(self.factors)):
            raise InputError("factors", list(self.factors), "an ascending list that begins with 1")

    @classmethod
    def from_rope_dict(cls, rope_dict: Mapping[str, Any]) -> RequestFactors:
        """Read the keys of a rope dict. Raises InputError if they are missing or have wrong values."""
        factors = rope_dict.get("factors")
        if not isinstance(factors, list | tuple):
            raise InputError("factors", factors, "an ascending list that begins with 1")
        return cls(rope_dict.get("original_max_position_embeddings", 0), tuple(factors))

    @property
    def lengths(self) -> tuple[int, ...]:
        """The tokens that each factor covers, which are also its rows in the table."""
        return tuple(math.ceil(factor * self.original_length) for factor in self.factors)

    @property
    def first_rows(self) -> tuple[int, ...]:
        """The row of the table with position 0 of each factor."""
        return tuple(accumulate(self.lengths[:-1], initial=0))

    def choose(self, tokens: int) -> int:
        """Return the index of the smallest factor for a request that may reach so many tokens.

        Raises InputError for more tokens than the largest factor covers.
        """
        for index, length in enumerate(self.lengths):
            if tokens <= length:
                return index
        raise InputError("tokens of the request", tokens, f"at most {self.lengths[-1]:,}")


def find_request_factors(fields: Mapping[str, Any]) -> RequestFactors | None:
    """Return the factors in the rope dicts of the text part of a configuration, or None if it has none.

    Raises InputError if the rope dict is incomplete.
    """
    rope_parameters = fields.get("rope_parameters")
    if not isinstance(rope_parameters, Mapping):
        return None
    rope_dicts = [rope_parameters, *(value for value in rope_parameters.values() if isinstance(value, Mapping))]
    found = next((rope_dict for rope_dict in rope_dicts if rope_dict.get("rope_type") == ROPE_TYPE), None)
    return None if found is None else RequestFactors.from_rope_dict(found)
