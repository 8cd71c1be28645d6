"""What scaling methods and position methods have in common: a name, options with ranges, and their specs.

A method is a frozen dataclass. A numeric option declares its range: `factor: float = field(metadata=at_least(1))`.
"""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from typing import Any, ClassVar

import numpy as np

from ropewalk.errors import InputError, check_length, check_number
from ropewalk.rope import Rope
from ropewalk.spec import format_spec, non_default_options


def at_least(minimum: float) -> dict[str, Any]:
    """Return the metadata of an option that must be a number of at least `minimum`, or its default of None."""
    return {"minimum": minimum}


def above(minimum: float) -> dict[str, Any]:
    """Return the metadata of an option that must be a number above `minimum`, or its default of None."""
    return {"minimum": minimum, "exclusive": True}


def whole(unit: str) -> dict[str, Any]:
    """Return the metadata of an option that must be a whole number of at least 1, in `unit`, or its default of None."""
    return {"unit": unit}


def check_options(options: Any) -> None:
    """Check the options of a frozen dataclass with a `name` against the ranges that they declare.

    Raises InputError for an option outside of its range.
    """
    for f in fields(options):
        value = getattr(options, f.name)
        if isinstance(value, np.generic):  # JSON cannot represent numpy scalars
            object.__setattr__(options, f.name, value.item())
        if not f.metadata or (value is None and f.default is None):
            continue
        check = check_length if "unit" in f.metadata else check_number
        check(f"{options.name}: {f.name}", value, **f.metadata)


@dataclass(frozen=True, repr=False)
class Method:
    """A method with its options.

    Class variables:
        name: the name in specs and on the command line.
        formula, source: what it computes and where it was published, for `ropewalk methods`.
        aliases: other names that are accepted, such as those of transformers.

    Args:
        original_length: tokens the model was trained on; overrides that of the Rope.
    """

    name: ClassVar[str]
    formula: ClassVar[str]
    source: ClassVar[str]
    aliases: ClassVar[tuple[str, ...]] = ()

    original_length: int | None = field(default=None, kw_only=True, metadata=whole("tokens"))

    def __post_init__(self) -> None:
        check_options(self)

    @property
    def is_dynamic(self) -> bool:
        """Whether the frequencies depend on the length of the text so far."""
        return False

    def resolve_original_length(self, rope: Rope) -> int:
        """Return the original length, in tokens. Raises InputError if neither the method nor the rope has one."""
        length = self.original_length or rope.original_length
        if length is None:
            raise InputError("original_length", None, "the tokens the model was trained on, max_position_embeddings")
        return length

    def to_dict(self) -> dict[str, Any]:
        """Return the name and the options, ready for JSON; `parse` turns it back into an equal method."""
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
