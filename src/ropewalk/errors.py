"""Errors that users see, one type per kind of mistake, and checks of numbers that raise them.

Every message is one line. The command line prints it and exits with status 2.
"""

from __future__ import annotations

import copyreg
from collections.abc import Iterable
from difflib import get_close_matches
from numbers import Integral, Real
from typing import Any

_MAX_SHOWN = 120  # characters of a value in a message
_MAX_NUMBER = 1e12  # formulas overflow for larger numbers


class InputError(ValueError):
    """The call was wrong: an argument, an option, a field of a configuration or a file cannot be used.

    Attributes:
        field: what was wrong, such as an argument, an option or a path into a configuration.
        value: what was found there.
        expected: what would have been right, as a phrase.
    """

    def __init__(self, field: str, value: object, expected: str, hint: str = "") -> None:
        """Form the message `field: got VALUE; expected EXPECTED`, with the hint in brackets if there is one."""
        shown = repr(value) if isinstance(value, str) else str(value)
        if len(shown) > _MAX_SHOWN:
            shown = shown[: _MAX_SHOWN - 3] + "..."
        hint = f" ({hint})" if hint else ""
        super().__init__(one_line(f"{field}: got {shown}; expected {expected}{hint}"))
        self.field = field
        self.value = value
        self.expected = expected

    def __reduce__(self) -> Any:
        # Pickle by state: the default would call __init__ with the formatted message. Errors cross processes.
        return copyreg.__newobj__, (type(self), *self.args), self.__dict__  # type: ignore[attr-defined]


class UnknownNameError(InputError):
    """A name is in no list of methods, options, engines, tasks, models or the like; the nearest one is suggested.

    Attributes:
        nearest: known names that resemble it, the most similar first; may be empty.
    """

    def __init__(self, field: str, name: object, known: Iterable[str], expected: str = "") -> None:
        """`known`: every valid name; `expected`: the phrase to list instead of all of them."""
        names = list(known)
        self.nearest = get_close_matches(str(name).lower(), names, n=3)
        super().__init__(
            field, name, expected or ", ".join(names), f"did you mean {self.nearest[0]}?" if self.nearest else ""
        )


class MissingPackageError(InputError):
    """A feature needs a package that is not installed.

    Attributes:
        package: its name on the package index.
        install: the command that installs it.
    """

    def __init__(self, feature: str, package: str, install: str) -> None:
        """`feature`: what needs the package, as in `ropewalk eval`."""
        ValueError.__init__(self, one_line(f"{feature} needs the package {package}: {install}"))
        self.field = self.value = feature
        self.expected = self.package = package
        self.install = install


class UnsupportedModelError(InputError):
    """A model, or a part of it, is of a kind that ropewalk cannot handle.

    Attributes:
        reason: why, as a clause.
    """

    def __init__(self, model: str, reason: str) -> None:
        """`model`: the class or the module that is not supported."""
        ValueError.__init__(self, one_line(f"{model} is not supported: {reason}"))
        self.field, self.value, self.expected = "model", model, "a supported model"
        self.reason = reason


class UnsupportedScalingError(InputError):
    """An engine cannot be given a scaling.

    Attributes:
        nearest: the spec of the most similar scaling that it can be given, or None.
    """

    def __init__(self, scaling: str, engine: str, nearest: str | None) -> None:
        """`engine`: title and version."""
        super().__init__(
            "scaling",
            scaling,
            f"a scaling that {engine} can express",
            f"the nearest is {nearest}" if nearest else "",
        )
        self.nearest = nearest


class IncompleteConfigError(InputError):
    """A configuration lacks a field that the size or the existence of its rotary embedding depends on."""


def one_line(text: str) -> str:
    """The text with every run of white space, line breaks included, replaced by one space."""
    return " ".join(text.split())


def check_number(field: str, value: object, *, minimum: float, exclusive: bool = False) -> float:
    """Return `value` as a float of at least `minimum` (above it if `exclusive`) and at most 1e12.

    Raises InputError otherwise.
    """
    number: Any = value if isinstance(value, Real) and not isinstance(value, bool) else None
    too_small = number is not None and (number <= minimum if exclusive else number < minimum)
    if number is None or too_small or not number <= _MAX_NUMBER:
        bound = f"above {minimum:g}" if exclusive else f"of at least {minimum:g}"
        raise InputError(field, value, f"a finite number {bound}, at most {_MAX_NUMBER:g}")
    return float(number)


def check_length(field: str, value: object, unit: str = "tokens") -> int:
    """Return `value` as a whole number, 1 to 2^53, of tokens or another unit. Raises InputError otherwise."""
    whole = int(value) if isinstance(value, Integral) and not isinstance(value, bool) else 0
    if not 1 <= whole <= 2**53:
        raise InputError(field, value, f"a whole number of {unit}, from 1 to 2^53")
    return whole
