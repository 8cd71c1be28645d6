"""The base class of all scaling methods."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any

from ropewalk.errors import InputError, check_length
from ropewalk.frequencies import Frequencies
from ropewalk.method import Method, above, at_least
from ropewalk.rope import Rope

__all__ = ["Scaling", "above", "at_least"]


@dataclass(frozen=True, repr=False)
class Scaling(Method, ABC):
    """One RoPE scaling method with its options.

    A subclass is a frozen dataclass (with repr=False, so that it keeps the short repr of `Method`) that sets the class
    variables of `Method` and implements `frequencies`. Being defined in this package registers it.
    """

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

    @property
    def is_per_layer(self) -> bool:
        """Whether each layer of the model has frequencies of its own; `frequencies` then raises InputError."""
        return False

    def layer_frequencies(self, rope: Rope) -> tuple[Frequencies, ...]:
        """Compute the scaled frequencies of `rope` for each layer, if `is_per_layer`.

        Raises InputError for any other scaling.
        """
        raise InputError("scaling", str(self), "a scaling with a set for each layer")

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
