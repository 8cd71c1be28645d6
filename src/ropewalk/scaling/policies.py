"""Policies decide for which length a dynamic scaling computes its frequencies while the text grows.

Up to the original length, every policy leaves the text unscaled. Past it, frequencies for a longer text than the
current one (the margin) retrieve facts from the beginning of the text more reliably, at a slightly higher perplexity.
docs/dynamic.md has the measurements behind the defaults.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar

from ropewalk import spec as specs
from ropewalk.errors import InputError, check_length, check_number
from ropewalk.registry import find_by_name


class Policy(ABC):
    """How the frequencies of a dynamic scaling follow the length of the text.

    A subclass is a frozen dataclass.

    Attributes:
        name: the name in specs and on the command line.
        keeps_key_snapshot: whether cached keys are re-rotated so often that they must be rotated from a copy of the
            keys as they were first cached. The copy increases the KV cache by half of its size.
        margin: the frequencies are computed for at least this multiple of the length of the text.
    """

    name: ClassVar[str]
    keeps_key_snapshot: ClassVar[bool] = False
    margin: float

    def __post_init__(self) -> None:
        check_number(f"{self.name}: margin", self.margin, minimum=1)

    def scaled_length(self, length: int, original_length: int) -> int:
        """Return the length, in tokens, to compute the frequencies for when the text has `length` tokens."""
        if length <= original_length:
            return original_length
        return self._scaled_length_past_original(length, original_length)

    @abstractmethod
    def _scaled_length_past_original(self, length: int, original_length: int) -> int:
        """Return the scaled length for a text that is longer than the original length."""

    def __str__(self) -> str:
        """Return the spec, with the options that differ from their defaults."""
        return specs.format_spec(self)


@dataclass(frozen=True)
class SteppedPolicy(Policy):
    """Use the first factor of a list that covers the text and the margin; cached keys are re-rotated at each step only.

    Args:
        factors: in increasing order. The default, an empty list, means all powers of two, so that a key is re-rotated
            log2(s) times while the text grows to s times the original length. Texts past the last factor keep it.
    """

    name = "stepped"

    factors: tuple[float, ...] = ()
    margin: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if isinstance(self.factors, (str, bytes)) or not hasattr(self.factors, "__iter__"):
            raise InputError("stepped: factors", self.factors, "a list of factors, as in stepped:factors=[2,4,8]")
        object.__setattr__(self, "factors", tuple(self.factors))
        for factor in self.factors:
            check_number("stepped: factors", factor, minimum=1)
        if list(self.factors) != sorted(set(self.factors)):
            raise InputError("stepped: factors", list(self.factors), "distinct numbers in increasing order")

    def _scaled_length_past_original(self, length: int, original_length: int) -> int:
        required = self.margin * length / original_length
        if not self.factors:
            return original_length << math.ceil(math.log2(required))
        factor = next((factor for factor in self.factors if factor >= required), self.factors[-1])
        return int(original_length * factor)


@dataclass(frozen=True)
class ContinuousPolicy(Policy):
    """Follow the length of the text in small steps.

    Args:
        every: the length is rounded up to a multiple of this many tokens; 1 re-rotates all keys at every token.
    """

    name = "continuous"
    keeps_key_snapshot = True

    every: int = 32
    margin: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        check_length("continuous: every", self.every)

    def _scaled_length_past_original(self, length: int, original_length: int) -> int:
        return math.ceil(self.margin * math.ceil(length / self.every) * self.every)


@dataclass(frozen=True)
class RequestPolicy(Policy):
    """Fix the frequencies when a request begins, for its maximum length.

    In `generate`, the maximum length is the prompt plus max_new_tokens. In a forward call that starts a cache, it is
    the number of tokens of that call. Cached keys are rotated only if a later request continues their cache with
    another length.
    """

    name = "request"

    margin: float = 1.25

    def _scaled_length_past_original(self, length: int, original_length: int) -> int:
        return math.ceil(self.margin * length)


POLICIES: dict[str, type[Policy]] = {cls.name: cls for cls in (SteppedPolicy, ContinuousPolicy, RequestPolicy)}
DEFAULT_POLICY: Policy = SteppedPolicy()


def parse_policy(spec: str | Policy) -> Policy:
    """Parse a policy from `name:option=value,...`.

    Raises InputError that names the wrong option; UnknownNameError for an unknown policy or option.
    """
    if isinstance(spec, Policy):
        return spec
    if not isinstance(spec, str):
        raise InputError("policy", spec, f"{', '.join(POLICIES)}, with options as in stepped:factors=[2,4,8]")
    return specs.parse_spec(spec, lambda name: find_by_name("policy", name, POLICIES))
