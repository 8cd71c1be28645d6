"""Why something was not measured, in one line."""

from __future__ import annotations


def reason_of(error: Exception) -> str:
    """The first line of what an error says, at most 200 characters, behind its type; of our own checks without it."""
    lines = str(error).strip().splitlines()
    said = lines[0][:200] if lines else ""
    return said if type(error) in (LookupError, ArithmeticError) else f"{type(error).__name__}: {said}"
