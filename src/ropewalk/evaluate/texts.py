"""Long texts by name: a file, a folder, a data set of the Hugging Face hub, or the built-in text."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ropewalk.errors import InputError, MissingPackageError

BUILT_IN = "pydoc"
_MAX_DATASET_CHARACTERS = 64 * 2**20  # rows of a data set are read until their texts exceed this size


@dataclass(frozen=True)
class Text:
    """A text, with the name under which `read_text` found it."""

    name: str
    content: str

    @property
    def digest(self) -> str:
        """The SHA-256 of the content, in hexadecimal."""
        return hashlib.sha256(self.content.encode()).hexdigest()


def read_text(name: str) -> Text:
    """Read a text.

    Args:
        name: one of
            a UTF-8 file;
            a folder, whose files are joined in the order of their paths;
            `hf:DATASET[:SPLIT[:FIELD]]`, whose rows are joined (by default split `train`, field `text`);
            `pydoc`, the help topics that come with Python.

    Raises InputError if the text does not exist, is empty, or is not UTF-8, and MissingPackageError.
    """
    if not name:
        raise InputError("text", name, f"a file, a folder, hf:DATASET[:SPLIT[:FIELD]], or {BUILT_IN}")
    if name == BUILT_IN:
        from pydoc_data.topics import topics

        content = "\n".join(topics.values())
    elif name.startswith("hf:"):
        content = _read_dataset(name)
    else:
        path = Path(name).expanduser()
        if not path.exists():
            raise InputError("text", name, f"a file or folder that exists, hf:DATASET[:SPLIT[:FIELD]], or {BUILT_IN}")
        files = sorted(file for file in path.rglob("*") if file.is_file()) if path.is_dir() else [path]
        content = "\n\n".join(_read_file(file) for file in files)
    if not content.strip():
        raise InputError("text", f"{name}, which is empty", "a text that is not empty")
    return Text(name, content)


def _read_file(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise InputError("text", f"{path}, which is not UTF-8 at byte {error.start}", "a UTF-8 file") from None
    except OSError as error:
        raise InputError("text", str(path), "a file that can be read", str(error.strerror)) from None


def _read_dataset(name: str) -> str:
    """Read the data set of a name such as `hf:DATASET:SPLIT:FIELD`, up to _MAX_DATASET_CHARACTERS."""
    dataset, _, rest = name.removeprefix("hf:").partition(":")
    split, _, field = rest.partition(":")
    try:
        from datasets import load_dataset
    except ImportError:
        raise MissingPackageError("a text of the hub", "datasets", "pip install 'ropewalk[eval]'") from None
    try:
        rows = load_dataset(dataset, split=split or "train", streaming=True)
        return "\n\n".join(_row_texts(name, rows, field or "text"))
    except InputError:
        raise
    except Exception as error:  # readers of data sets raise errors of any type
        raise InputError("text", name, "a data set that can be read", str(error)) from None


def _row_texts(name: str, rows: Iterable[Mapping[str, Any]], field: str) -> list[str]:
    texts: list[str] = []
    characters = 0
    for row in rows:
        text = row.get(field)
        if not isinstance(text, str):
            raise InputError("text", f"{name}, field {field}", f"one of its text fields: {', '.join(row)}")
        texts.append(text)
        characters += len(text)
        if characters >= _MAX_DATASET_CHARACTERS:
            break
    return texts
