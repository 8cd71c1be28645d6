"""Files, and folders of them, that are there whole or not at all."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

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


@contextmanager
def whole_folder(folder: Path, mark: str) -> Iterator[Path]:
    """An empty folder to write to; when the block has ended well, what it wrote stands in `folder`, all at once.

    An error or Ctrl-C leaves `folder` as it was. `mark`: the name of a JSON object that the block writes, whose
    `written` is the `state` of all else: what still is in that state gives way to the next such block. Everything
    else is the user's, and stays.

    Raises InputError for a folder that cannot be written, that holds files and no mark, or whose other files, or what
    the new ones link to, would be lost.
    """
    try:
        new = not folder.exists()
        found = None if new or _written(folder, mark) else next(folder.iterdir(), None)
    except OSError as error:
        raise InputError("out", f"{folder} ({error.strerror})", "a folder that can be read and written") from None
    if found is not None:
        raise InputError("out", str(found), "an empty folder, or one that an earlier export wrote")
    try:
        parent = writable_folder(folder)
        with tempfile.TemporaryDirectory(prefix=".", dir=parent, ignore_cleanup_errors=True) as beside:
            fresh, earlier = Path(beside) / "new", Path(beside) / "old"
            fresh.mkdir()
            earlier.mkdir()
            yield fresh
            _take_places(fresh, parent, earlier, mark)
    finally:
        if new:
            with suppress(OSError):  # it is not empty, or could not be made
                folder.rmdir()


def state(path: Path) -> Any:
    """What tells whether something has changed: a link's target, a file's size and time, and of a folder all of it."""
    if path.is_symlink():
        return os.readlink(path)
    if path.is_dir():
        return {each.name: state(each) for each in sorted(path.iterdir())}
    found = path.stat()
    return [found.st_size, found.st_mtime_ns]


def _written(folder: Path, mark: str) -> set[str]:
    """The names in a folder that are as `mark` says that they were written, and the mark itself; none without one."""
    try:
        recorded = json.loads((folder / mark).read_text(encoding="utf-8"))["written"]
        as_written = {
            name for name in os.listdir(folder) if name in recorded and recorded[name] == state(folder / name)
        }
    except (OSError, ValueError, LookupError, TypeError, RecursionError):
        return set()
    return {mark, *as_written}


def _take_places(fresh: Path, folder: Path, earlier: Path, mark: str) -> None:
    """Move what is in `fresh` to `folder`, and what was written there before to `earlier`; or nothing at all."""
    names, before, root = os.listdir(fresh), _written(folder, mark), folder.resolve()
    for name in names:
        if name not in before and os.path.lexists(folder / name):
            raise InputError("out", str(folder / name), "another folder: that file is yours, and would be replaced")
        target = (fresh / name).resolve()
        if target.is_relative_to(root) and before.intersection(target.relative_to(root).parts[:1]):
            raise InputError("out", str(folder), f"another folder: the model's own {target.name} is in it")
    try:
        for name in sorted(before, key=mark.__ne__):  # without its mark it is no export any more
            os.rename(folder / name, earlier / name)
        for name in sorted(names, key=mark.__eq__):
            os.rename(fresh / name, folder / name)
    except BaseException:
        for name in names:
            if not os.path.lexists(fresh / name):
                os.rename(folder / name, fresh / name)
        for name in os.listdir(earlier):
            os.rename(earlier / name, folder / name)
        raise
