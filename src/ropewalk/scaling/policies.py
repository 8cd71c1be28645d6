"""Policies: for which length a dynamic scaling is made while the text grows.

A text within the trained length is read unscaled, whatever the policy. Past it, frequencies for a longer text than
there is find what stands at its beginning more reliably, at a little perplexity: the margin. docs/dynamic.md has the
measurements behind the defaults.
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
    """How the frequencies of a dynamic scaling follow the text.

    A policy is a frozen dataclass with a `margin`, how much longer than the text the scaling is made for.
    Class variables: `keeps_reference` says whether keys turn so often that they are turned from a copy of the keys as
    they were cached, which costs half of the KV cache again.
    """

    name: ClassVar[str]
    keeps_key_snapshot: ClassVar[bool] = False
    margin: float

    def __post_init__(self) -> None:
        check_number(f"{self.name}: margin", self.margin, minimum=1)

    def scaled_for(self, reached: int, original: int) -> int:
        """Tokens to make the scaling for, when the text has reached `reached` and the original length is given."""
        return original if reached <= original else self.past(reached, original)

    @abstractmethod
    def past(self, reached: int, original: int) -> int:
        """`scaled_for` past the original length."""

    def __str__(self) -> str:
        return specs.write_spec(self)


@dataclass(frozen=True)
class SteppedPolicy(Policy):
    """The first factor of a list that covers the text with the margin; a key turns at each step, and never between.

    `factors`: in rising order; powers of two by default, which turn a key log2(s) times on the way to s. A text
    that outgrows the last one is read with it.
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
            raise InputError("stepped: factors", list(self.factors), "each once, in rising order")

    def past(self, reached: int, original: int) -> int:
        needed = self.margin * reached / original
        if not self.factors:
            return original << math.ceil(math.log2(needed))
        return int(original * next((factor for factor in self.factors if factor >= needed), self.factors[-1]))


@dataclass(frozen=True)
class ContinuousPolicy(Policy):
    """The text's length times the margin, rounded up to a multiple of `every` tokens: 1 follows at each token."""

    name = "continuous"
    keeps_key_snapshot = True

    every: int = 32
    margin: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        check_length("continuous: every", self.every)

    def past(self, reached: int, original: int) -> int:
        return math.ceil(self.margin * math.ceil(reached / self.every) * self.every)


@dataclass(frozen=True)
class RequestPolicy(Policy):
    """Fixed when a request begins, for all it may come to: nothing turns while it runs.

    In `generate` that is the prompt and max_new_tokens; in a forward call that starts a cache, its tokens.
    """

    name = "request"

    margin: float = 1.25

    def past(self, reached: int, original: int) -> int:
        return math.ceil(self.margin * reached)


POLICIES: dict[str, type[Policy]] = {cls.name: cls for cls in (SteppedPolicy, ContinuousPolicy, RequestPolicy)}
DEFAULT_POLICY: Policy = SteppedPolicy()


def parse_policy(spec: str | Policy) -> Policy:
    """Read a policy from `name:option=value,...`. Raises InputError naming the option."""
    if isinstance(spec, Policy):
        return spec
    if not isinstance(spec, str):
        raise InputError("policy", spec, f"{', '.join(POLICIES)}, with options as in stepped:factors=[2,4,8]")
    name, options = specs.read_spec(spec)
    return specs.build(find_by_name("policy", name, POLICIES), options)
