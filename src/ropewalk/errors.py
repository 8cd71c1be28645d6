"""The one error that means: the call was wrong, not the work."""

from __future__ import annotations


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


def check_number(field: str, value: object, *, least: float, above: bool = False) -> float:
    """`value` as a finite float that is at least `least` (or, with `above`, greater than it).

    Raises InputError otherwise.
    """
    bound = f"a finite number {'above' if above else 'of at least'} {least:g}"
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise InputError(field, value, bound)
    try:
        number = float(value)
    except OverflowError:
        raise InputError(field, value, bound) from None
    if not (least < number if above else least <= number) or number == float("inf"):
        raise InputError(field, value, bound)
    return number


def check_length(field: str, value: object) -> int:
    """`value` as a whole number of tokens, at least 1. Raises InputError otherwise."""
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise InputError(field, value, "a whole number of tokens, at least 1")
    return value
