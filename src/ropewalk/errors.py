"""The one error that means: the call was wrong, not the work."""

from __future__ import annotations

import copyreg
from numbers import Integral, Real
from typing import Any


class InputError(ValueError):
    """What the user gave cannot be used; the message is one line and says what is allowed.

    The command line prints it and exits with status 2.
    """

    def __init__(self, field: str, found: object, allowed: str) -> None:
        """`field`: what was wrong; `found`: the value seen; `allowed`: what would have been right."""
        shown = repr(found) if isinstance(found, str) else str(found)
        if len(shown) > 120:
            shown = shown[:117] + "..."
        super().__init__(" ".join(f"{field}: found {shown}; allowed: {allowed}".split()))
        self.field = field

    def __reduce__(self) -> Any:
        """As it stands: made anew from its line, it would be made twice. Errors travel between processes."""
        return copyreg.__newobj__, (type(self), *self.args), self.__dict__  # type: ignore[attr-defined]


def check_number(field: str, value: object, *, least: float, above: bool = False) -> float:
    """`value` as a float from `least` (or, with `above`, above it) to 1e12, past which formulas would overflow.

    Raises InputError otherwise.
    """
    number: Any = value if isinstance(value, Real) and not isinstance(value, bool) else None
    if number is None or not (least < number if above else least <= number) or number > 1e12:
        raise InputError(field, value, f"a finite number {'above' if above else 'of at least'} {least:g}, at most 1e12")
    return float(number)


def check_length(field: str, value: object, of: str = "tokens") -> int:
    """`value` as a whole number of tokens, or of something else, 1 to 2^53. Raises InputError otherwise."""
    whole = int(value) if isinstance(value, Integral) and not isinstance(value, bool) else 0
    if not 1 <= whole <= 2**53:
        raise InputError(field, value, f"a whole number of {of}, from 1 to 2^53")
    return whole
