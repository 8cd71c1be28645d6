"""Files that are there whole or not at all."""

from __future__ import annotations

import os
from pathlib import Path

from ropewalk.errors import InputError


def write_whole(path: Path, content: str) -> None:
    """Write a text file beside the old one and let it take its place: no reader and no crash sees half of it."""
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with open(beside, "w", encoding="utf-8", newline="") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(beside, path)
    except OSError:
        beside.unlink(missing_ok=True)  # on a full disk, half a file keeps it full
        raise


def writable_folder(folder: str | Path) -> Path:
    """The folder, made if it was not there. Raises InputError when nothing can be written to it."""
    path = Path(folder).expanduser()
    probe = path / f".{os.getpid()}.probe"
    try:
        path.mkdir(parents=True, exist_ok=True)
        probe.write_text("")
        probe.unlink()
    except OSError as error:
        raise InputError("out", f"{folder} ({error.strerror})", "a folder that can be written") from None
    return path
