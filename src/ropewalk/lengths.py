"""Lengths in tokens as users write them: 8192, 8k, 128k, 1m (k = 1024)."""

from __future__ import annotations

import re

from ropewalk.errors import InputError

_UNITS = {"": 1, "k": 1024, "m": 1024**2}


def parse_length(text: str, field: str = "length") -> int:
    """Return the number of tokens written as `8192`, `8k`, `1.5k` or `1m`.

    Args:
        text: the length, from 1 to 2048m.
        field: the name of the option in the error message.

    Raises InputError for any other text.
    """
    match = re.fullmatch(r"(\d+(?:\.\d+)?)([km]?)", text.strip().lower())
    tokens = float(match[1]) * _UNITS[match[2]] if match else 0.0
    if tokens < 1 or tokens != int(tokens) or tokens > 2**31:
        raise InputError(field, text, "tokens from 1 to 2048m, written as 8192, 8k, 128k or 1m (k = 1024)")
    return int(tokens)


def parse_lengths(text: str, field: str = "lengths") -> list[int]:
    """Return the lengths of a comma-separated list such as `2k,4k,8k`; see `parse_length`."""
    return [parse_length(part, field) for part in text.split(",") if part.strip()]


def format_length(length: int) -> str:
    """Return the length in the largest unit that divides it: `8k` for 8192, `8193` for 8193."""
    for unit in ("m", "k"):
        if length >= _UNITS[unit] and length % _UNITS[unit] == 0:
            return f"{length // _UNITS[unit]}{unit}"
    return str(length)
