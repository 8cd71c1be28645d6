"""Files with one JSON object per line (JSONL), or with a list of objects."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ropewalk.errors import InputError
from ropewalk.files import parse_json


def read_lines(path: str | Path, field: str) -> list[str]:
    """Return the lines of a file in UTF-8, without a byte order mark. A path may begin with `~`.

    Raises InputError if the file cannot be read; `field` is the option that names it.
    """
    try:
        return Path(path).expanduser().read_text(encoding="utf-8-sig").split("\n")
    except UnicodeDecodeError as error:
        raise InputError(field, f"{path}, which is not UTF-8 at byte {error.start}", "a JSONL file in UTF-8") from None
    except OSError as error:
        raise InputError(field, str(path), "a file that can be read", str(error.strerror)) from None


def digest_lines(path: str | Path, field: str) -> str:
    """Return the SHA-256 of the lines of a file, in hexadecimal; the arguments are those of `read_lines`."""
    return hashlib.sha256("\n".join(read_lines(path, field)).encode()).hexdigest()


def read_json_lines(path: str | Path, field: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield the name of each line, for error messages, and the JSON object in it. Empty lines are skipped.

    Raises InputError as `read_lines` does, and for a line that is no JSON object or has lone surrogates.
    """
    return _parse_lines(read_lines(path, field), path)


def _parse_lines(lines: list[str], path: str | Path) -> Iterator[tuple[str, dict[str, Any]]]:
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        name = f"{path} line {number}"
        try:
            value = parse_json(line)
        except ValueError as error:
            raise InputError(name, line, "a JSON object", str(error)) from None
        if not isinstance(value, dict):
            raise InputError(name, line, "a JSON object")
        yield name, value


def read_json_records(path: str | Path, field: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield the name of each JSON object in a file, for error messages, and the object.

    The file holds one JSON list, or one object per line. Raises InputError as `read_json_lines` does.
    """
    lines = read_lines(path, field)
    if not next((line for line in lines if line.strip()), "").lstrip().startswith("["):
        yield from _parse_lines(lines, path)
        return
    try:
        values = parse_json("\n".join(lines))
    except ValueError as error:
        raise InputError(field, str(path), "a list of JSON objects, or one object per line", str(error)) from None
    for number, value in enumerate(values, 1):
        name = f"{path} item {number}"
        if not isinstance(value, dict):
            raise InputError(name, value, "a JSON object")
        yield name, value
