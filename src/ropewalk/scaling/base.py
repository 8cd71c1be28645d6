"""What every scaling is, and the one way to write and read it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, field, fields
from typing import Any, ClassVar

import numpy as np

from ropewalk.errors import InputError, check_length
from ropewalk.frequencies import Frequencies
from ropewalk.rope import Rope
from ropewalk.spec import write_spec


@dataclass(frozen=True)
class Scaling(ABC):
    """One RoPE scaling method with its parameters.

    A subclass is a frozen dataclass that sets the class variables and `frequencies`; being in this
    folder registers it. `original_length` overrides the rope's own.
    """

    name: ClassVar[str]
    formula: ClassVar[str]
    source: ClassVar[str]
    aliases: ClassVar[tuple[str, ...]] = ()

    original_length: int | None = field(default=None, kw_only=True)

    def __post_init__(self) -> None:
        for f in fields(self):
            value = getattr(self, f.name)
            if isinstance(value, np.generic):  # a number of numpy's, which JSON does not know
                object.__setattr__(self, f.name, value.item())
        if self.original_length is not None:
            check_length(f"{self.name}: original_length", self.original_length)

    @property
    def is_dynamic(self) -> bool:
        """Whether the frequencies depend on the length of the text so far."""
        return False

    def extension_factor(self, rope: Rope, length: int | None = None) -> float:
        """Target length over original length that the frequencies are made for; 1 where they do not say.

        `length`: fixes a dynamic scaling at that length.
        """
        if self.is_dynamic:
            return 1.0 if length is None else max(1.0, self.length_ratio(rope, length))
        return float(getattr(self, "factor", None) or 1.0)

    @abstractmethod
    def frequencies(self, rope: Rope, length: int | None = None) -> Frequencies:
        """The frequencies of `rope` under this scaling.

        Args:
            rope: the unscaled embedding.
            length: tokens of the text so far; needed when `dynamic`, ignored otherwise.

        Raises InputError when the original length or the length is needed and missing.
        """

    def resolve_original_length(self, rope: Rope) -> int:
        """The original length, tokens. Raises InputError when neither the scaling nor the rope has it."""
        length = self.original_length or rope.original_length
        if length is None:
            raise InputError("original_length", None, f"the tokens the model was trained on, which {self.name} needs")
        return length

    def length_ratio(self, rope: Rope, length: int | None) -> float:
        """Length of the text over original length, l / L; below 1 for a text shorter than the training's.

        Raises InputError when the length is missing or below 1.
        """
        if length is None:
            raise InputError("length", None, f"the length of the text, which {self.name} needs")
        return check_length("length", length) / self.resolve_original_length(rope)

    def to_rope_parameters(self, rope: Rope, length: int | None = None) -> dict[str, Any] | None:
        """The `rope_parameters` with which transformers gives these frequencies; None when it cannot.

        A static scaling that transformers has no name for is written as `longrope` with equal short and long
        lists and its attention factor; so is a dynamic one that `length` fixes at the frequencies of that
        length. rope_theta and the like are the caller's to add.
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
        """Name and parameters, ready for JSON; `parse` reads it back to an equal scaling."""
        shown = {f.name: getattr(self, f.name) for f in fields(self)}
        if self.original_length is None:
            del shown["original_length"]
        listed = {key: list(value) if isinstance(value, tuple) else value for key, value in shown.items()}
        return {"name": self.name, **listed}

    def __str__(self) -> str:
        """The spec, `name:option=value,...`, with the options that differ from the default."""
        return write_spec(self)
