"""Long texts by the name that a user gives: a file, a folder, a data set, or the built-in one."""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ropewalk.errors import InputError

BUILT_IN = "pydoc"
_DATASET_CHARACTERS = 64 * 2**20  # as much of a data set as is read


@dataclass(frozen=True)
class Text:
    """A text and the name it was asked for by."""

    name: str
    content: str

    @property
    def digest(self) -> str:
        """SHA-256 of the content, in hexadecimal."""
        return hashlib.sha256(self.content.encode()).hexdigest()


def read_text(name: str) -> Text:
    """Read a text.

    Args:
        name: a UTF-8 file; a folder, whose files are joined in the order of their paths; `hf:DATASET[:SPLIT[:FIELD]]`,
            whose rows are joined (split train, field text by default); or `pydoc`, the topics of Python's own help.

    Raises InputError for a text that is missing, empty or not UTF-8.
    """
    if name == BUILT_IN:
        from pydoc_data.topics import topics

        content = "\n".join(topics.values())
    elif name.startswith("hf:"):
        content = _dataset(name)
    else:
        path = Path(name).expanduser()
        if not path.exists():
            raise InputError("text", name, f"a file or folder that exists, hf:DATASET[:SPLIT[:FIELD]], or {BUILT_IN}")
        files = sorted(file for file in path.rglob("*") if file.is_file()) if path.is_dir() else [path]
        content = "\n\n".join(_file(file) for file in files)
    if not content.strip():
        raise InputError("text", f"{name}, which is empty", "a text with words in it")
    return Text(name, content)


def _file(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise InputError("text", f"{path}, which is not UTF-8 at byte {error.start}", "a UTF-8 file") from None
    except OSError as error:
        raise InputError("text", f"{path} ({error.strerror})", "a file that can be read") from None


def _dataset(name: str) -> str:
    dataset, _, rest = name.removeprefix("hf:").partition(":")
    split, _, column = rest.partition(":")
    try:
        from datasets import load_dataset
    except ImportError:
        raise InputError("text", name, "the package datasets installed (pip install 'ropewalk[eval]')") from None
    try:
        rows = load_dataset(dataset, split=split or "train", streaming=True)
    except Exception as error:  # the library raises whatever its readers raise
        raise InputError("text", name, f"a data set that can be read ({error})") from None
    return "\n\n".join(_up_to(_DATASET_CHARACTERS, _column(name, rows, column or "text")))


def _column(name: str, rows: Iterable[Any], column: str) -> Iterable[str]:
    for row in rows:
        if not isinstance(row.get(column), str):
            raise InputError("text", f"{name}, field {column}", f"one of its text fields: {', '.join(row)}")
        yield row[column]


def _up_to(characters: int, parts: Iterable[str]) -> Iterable[str]:
    lengths = 0

    def fits(part: str) -> bool:
        nonlocal lengths
        lengths += len(part)
        return lengths - len(part) < characters

    return itertools.takewhile(fits, parts)
