"""A lock that lets one process at a time write the results in a folder."""

from __future__ import annotations

from pathlib import Path

from filelock import FileLock, Timeout

from ropewalk.errors import InputError


def lock_folder(folder: Path, file: str) -> FileLock:
    """Return the lock of a file of results in a folder, acquired; release it when done. A killed process frees it.

    Raises InputError if another process, or another run in this process, holds it.
    """
    lock = FileLock(folder / f".{file}.lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        found = f"{folder}, to which another process writes"
        raise InputError("out", found, "another folder, or the same once that process has ended") from None
    return lock
