"""The base class of all scaling methods."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, field, fields
from typing import Any, ClassVar

import numpy as np

from ropewalk.errors import InputError, check_length, check_number
from ropewalk.frequencies import Frequencies
from ropewalk.rope import Rope
from ropewalk.spec import format_spec, non_default_options


def at_least(minimum: float) -> dict[str, Any]:
    """Return the metadata of an option that must be a number of at least `minimum`, or its default of None."""
    return {"minimum": minimum}


def above(minimum: float) -> dict[str, Any]:
    """Return the metadata of an option that must be a number above `minimum`, or its default of None."""
    return {"minimum": minimum, "exclusive": True}


@dataclass(frozen=True, repr=False)
class Scaling(ABC):
    """One RoPE scaling method with its options.

    A subclass is a frozen dataclass (with repr=False, so that it keeps the short repr defined here) that sets the class
    variables and implements `frequencies`. Being defined in this package registers it. A numeric option declares its
    range: `factor: float = field(metadata=at_least(1))`.

    Class variables:
        name: the name in specs and on the command line.
        formula, source: the formula of its frequencies and where it was published, for `ropewalk methods`.
        aliases: other names that are accepted, such as those of transformers.

    Args:
        original_length: tokens the model was trained on; overrides that of the Rope.
    """

    name: ClassVar[str]
    formula: ClassVar[str]
    source: ClassVar[str]
    aliases: ClassVar[tuple[str, ...]] = ()

    original_length: int | None = field(default=None, kw_only=True)

    def __post_init__(self) -> None:
        for f in fields(self):
            value = getattr(self, f.name)
            if isinstance(value, np.generic):  # JSON cannot represent numpy scalars
                object.__setattr__(self, f.name, value.item())
            if f.metadata and not (value is None and f.default is None):
                check_number(f"{self.name}: {f.name}", value, **f.metadata)
        if self.original_length is not None:
            check_length(f"{self.name}: original_length", self.original_length)

    @property
    def is_dynamic(self) -> bool:
        """Whether the frequencies depend on the length of the text so far."""
        return False

    def extension_factor(self, rope: Rope, length: int | None = None) -> float:
        """Return the ratio of target length to original length that the frequencies are computed for.

        It is 1 for methods without such a ratio, and for a dynamic scaling without a `length`.

        Args:
            rope: the unscaled embedding.
            length: the text length, in tokens, at which a dynamic scaling is fixed.
        """
        if self.is_dynamic:
            return 1.0 if length is None else max(1.0, self.length_ratio(rope, length))
        return float(getattr(self, "factor", None) or 1.0)

    @abstractmethod
    def frequencies(self, rope: Rope, length: int | None = None) -> Frequencies:
        """Compute the scaled frequencies of `rope`.

        Args:
            rope: the unscaled embedding.
            length: tokens of the text so far; required if `is_dynamic`, ignored otherwise.

        Raises InputError if the original length or the length is needed and missing.
        """

    def resolve_original_length(self, rope: Rope) -> int:
        """Return the original length, in tokens. Raises InputError if neither the scaling nor the rope has one."""
        length = self.original_length or rope.original_length
        if length is None:
            raise InputError("original_length", None, f"the tokens the model was trained on, which {self.name} needs")
        return length

    def length_ratio(self, rope: Rope, length: int | None) -> float:
        """Return the ratio of text length to original length, l / L; it is below 1 for short texts.

        Raises InputError if the length is missing or below 1.
        """
        if length is None:
            raise InputError("length", None, f"the length of the text, which {self.name} needs")
        return check_length("length", length) / self.resolve_original_length(rope)

    def scaled_length(self, rope: Rope, length: int | None = None) -> float:
        """Return the length that the scaling is made for, in tokens: the original length times the factor.

        `length`: the text length, in tokens, at which a dynamic scaling is fixed. Raises InputError if the original
        length is unknown.
        """
        return self.resolve_original_length(rope) * self.extension_factor(rope, length)

    def to_rope_parameters(self, rope: Rope, length: int | None = None) -> dict[str, Any] | None:
        """Return the `rope_parameters` dict that makes transformers compute these frequencies, or None.

        transformers has no type for most methods. It can still compute the frequencies of any static scaling as
        `longrope` with equal short and long lists and an explicit attention factor. This default implementation returns
        that dict. It returns None for a softmax factor or for pairs with frequency 0, which longrope cannot express.

        Args:
            rope: the unscaled embedding; the caller adds rope_theta and other keys that describe it.
            length: the text length, in tokens, at which a dynamic scaling is fixed. Without it, the result for a
                dynamic scaling is None unless transformers has a dynamic type for it.
        """
        if self.is_dynamic and length is None:
            return None
        scaled = self.frequencies(rope, length)
        if scaled.softmax_factor != 1 or not scaled.inv_freq.all():
            return None
        divisors = (rope.inv_freq / scaled.inv_freq).tolist()
        return {
            "rope_type": "longrope",
            "short_factor": divisors,
            "long_factor": divisors,
            "factor": self.extension_factor(rope, length),
            "attention_factor": scaled.attention_factor,
            "original_max_position_embeddings": self.resolve_original_length(rope),
        }

    def to_dict(self) -> dict[str, Any]:
        """Return the name and the options, ready for JSON; `parse` turns it back into an equal scaling."""
        options = {f.name: getattr(self, f.name) for f in fields(self)}
        if self.original_length is None:
            del options["original_length"]
        as_lists = {key: list(value) if isinstance(value, tuple) else value for key, value in options.items()}
        return {"name": self.name, **as_lists}

    def __str__(self) -> str:
        """Return the spec, such as `yarn:factor=4`, with the options that differ from their defaults."""
        return format_spec(self)

    def __repr__(self) -> str:
        """Return the constructor call, such as `YaRN(factor=4)`, with the options that differ from their defaults."""
        options = ", ".join(f"{option}={value!r}" for option, value in non_default_options(self).items())
        return f"{type(self).__name__}({options})"
