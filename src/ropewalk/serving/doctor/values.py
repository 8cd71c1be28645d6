"""Read single values of a configuration, which may be of any type."""

from __future__ import annotations

LENGTH_TOLERANCE = 1.03  # ratio of lengths that count as equal: 128k is 131,072 and also 128,000
_MAX_NUMBER = 1e12  # formulas overflow for larger numbers


def finite_number(value: object) -> float | None:
    """Return the value as a float if it is a number between -1e12 and 1e12, else None. Booleans are not numbers."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not -_MAX_NUMBER <= value <= _MAX_NUMBER:
        return None
    return float(value)


def format_number(number: float) -> str:
    """Return a number as people read it: 10,000,000 and not 1e+07."""
    return f"{number:,.10g}"


def parse_number(value: object) -> float | None:
    """Return the number that a value contains as text, such as "4.0", else None."""
    try:
        return finite_number(float(str(value)))
    except ValueError:
        return None


def token_count(value: object) -> int | None:
    """Return the value if it is an int from 1 to 2^53, else None."""
    return value if isinstance(value, int) and not isinstance(value, bool) and 1 <= value <= 2**53 else None


def parse_token_count(value: object) -> int | None:
    """Return the number of tokens that a value contains as text or as a float, such as "131,072", else None."""
    try:
        return token_count(int(float(str(value).replace(",", "").replace("_", ""))))
    except (ValueError, OverflowError):
        return None
