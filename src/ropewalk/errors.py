"""Errors shown to users, one class for each kind of mistake, and checks of numbers that raise them.

Every message is one line. The command line prints it and exits with status 2.
"""

from __future__ import annotations

import copyreg
import math
from collections.abc import Iterable
from difflib import get_close_matches
from numbers import Integral, Real
from typing import Any

_MAX_VALUE_CHARACTERS = 165  # a longer value is truncated in the message; paths with a reason must fit
_MAX_NUMBER = 1e12  # formulas overflow for larger numbers


class InputError(ValueError):
    """Raised for wrong input: an argument, an option, a field of a configuration or a file cannot be used.

    Attributes:
        field: the argument, option or path into a configuration that is wrong.
        value: the value it has.
        expected: a phrase that describes the values it may have.
    """

    def __init__(self, field: str, value: object, expected: str, hint: str = "") -> None:
        """Build the message `field: got VALUE; expected EXPECTED`, followed by the hint in parentheses if given."""
        shown = repr(value) if isinstance(value, str) else str(value)
        if len(shown) > _MAX_VALUE_CHARACTERS:
            shown = shown[: _MAX_VALUE_CHARACTERS - 3] + "..."
        hint = f" ({hint})" if hint else ""
        super().__init__(one_line(f"{field}: got {shown}; expected {expected}{hint}"))
        self.field = field
        self.value = value
        self.expected = expected

    def __reduce__(self) -> Any:
        # Pickle by state: the default would call __init__ with the formatted message. Errors cross processes.
        return copyreg.__newobj__, (type(self), *self.args), self.__dict__  # type: ignore[attr-defined]


class UnknownNameError(InputError):
    """Raised for a misspelled or unknown method, option, engine, task or model; suggests the nearest known name.

    Attributes:
        nearest: known names that resemble the given one, the most similar first; may be empty.
    """

    def __init__(self, field: str, name: object, known: Iterable[str], expected: str = "") -> None:
        """Build the message.

        Args:
            field: the kind of name, such as `engine`.
            name: the unknown name.
            known: every valid name.
            expected: a phrase to show instead of the list of all valid names.
        """
        names = list(known)
        self.nearest = get_close_matches(str(name).lower(), names, n=3)
        hint = f"did you mean {self.nearest[0]}?" if self.nearest else ""
        super().__init__(field, name, expected or ", ".join(names), hint)


class MissingPackageError(InputError):
    """Raised when a feature needs a package that is not installed.

    Attributes:
        package: its name on the package index.
        install: the command that installs it.
    """

    def __init__(self, feature: str, package: str, install: str) -> None:
        """Build the message. `feature` is what needs the package, such as `ropewalk eval`."""
        ValueError.__init__(self, one_line(f"{feature} needs the package {package}: {install}"))
        self.field = self.value = feature
        self.expected = self.package = package
        self.install = install


class UnsupportedModelError(InputError):
    """Raised for a model, or a module of one, that ropewalk cannot handle.

    Attributes:
        reason: why, as a clause.
    """

    def __init__(self, model: str, reason: str) -> None:
        """Build the message. `model` is the class or the module that is not supported."""
        ValueError.__init__(self, one_line(f"{model} is not supported: {reason}"))
        self.field, self.value, self.expected = "model", model, "a supported model"
        self.reason = reason


class UnsupportedScalingError(InputError):
    """Raised when no configuration makes an engine compute a scaling.

    Attributes:
        nearest: the spec of the most similar scaling that the engine supports, or None.
    """

    def __init__(self, scaling: str, engine: str, nearest: str | None) -> None:
        """Build the message. `engine` is its title and version."""
        hint = f"the nearest is {nearest}" if nearest else ""
        super().__init__("scaling", scaling, f"a scaling that {engine} can express", hint)
        self.nearest = nearest


class IncompleteConfigError(InputError):
    """Raised for a configuration that omits a field needed to determine its rotary embedding.

    The omitted field may have a default in the configuration class of the architecture.
    """


def one_line(text: str) -> str:
    """Return the text with every run of whitespace, line breaks included, replaced by one space."""
    return " ".join(text.split())


def check_number(field: str, value: object, *, minimum: float, exclusive: bool = False) -> float:
    """Return `value` as a float of at least `minimum` (above it if `exclusive`) and at most 1e12.

    Raises InputError for any other value. Booleans are not numbers here.
    """
    number: Any = value if isinstance(value, Real) and not isinstance(value, bool) else math.nan
    is_large_enough = number > minimum if exclusive else number >= minimum
    if not (is_large_enough and number <= _MAX_NUMBER):
        bound = f"above {minimum:g}" if exclusive else f"of at least {minimum:g}"
        raise InputError(field, value, f"a finite number {bound}, at most 1e12")
    return float(number)


def check_length(field: str, value: object, unit: str = "tokens") -> int:
    """Return `value` as an int from 1 to 2^53, counted in `unit`.

    Raises InputError for any other value. Booleans are not numbers here.
    """
    number = int(value) if isinstance(value, Integral) and not isinstance(value, bool) else 0
    if not 1 <= number <= 2**53:
        raise InputError(field, value, f"a whole number of {unit}, from 1 to 2^53")
    return number
