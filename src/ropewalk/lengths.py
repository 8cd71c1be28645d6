"""Lengths as people write them: 8192, 8k, 128k, 1m (k = 1024)."""

from __future__ import annotations

import re

from ropewalk.errors import InputError

_UNITS = {"": 1, "k": 1024, "m": 1024**2}


def parse_length(text: str, field: str = "length") -> int:
    """Tokens from `8192`, `8k`, `1.5k`, `1m`. Raises InputError for anything else."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)([km]?)", text.strip().lower())
    tokens = float(match[1]) * _UNITS[match[2]] if match else 0.0
    if tokens < 1 or tokens != int(tokens) or tokens > 2**31:
        raise InputError(field, text, "tokens from 1 to 2048m, written as 8192, 8k, 128k or 1m (k = 1024)")
    return int(tokens)


def length_name(length: int) -> str:
    """`8k` for 8192; the number itself where no unit divides it."""
    for unit in ("m", "k"):
        if length >= _UNITS[unit] and length % _UNITS[unit] == 0:
            return f"{length // _UNITS[unit]}{unit}"
    return str(length)
