"""Atomic writing of files and folders: a reader, or a run after a crash, sees all of the content or none of it."""

from __future__ import annotations

import json
import os
import secrets
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any, Literal

from ropewalk.errors import InputError


@contextmanager
def replace_file_atomically(path: Path, mode: Literal["w", "wb"] = "w") -> Iterator[IO[Any]]:
    """Yield a new file; when the block ends, rename it to `path`. If the block raises, `path` stays as it was.

    The file is open for text in UTF-8, or for bytes if `mode` is "wb", under a temporary name that no other process
    or thread uses.
    """
    temporary = path.with_name(f".{secrets.token_hex(8)}.tmp")
    text_options: dict[str, Any] = {} if "b" in mode else {"encoding": "utf-8", "newline": ""}
    try:
        with open(temporary, mode, **text_options) as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)  # otherwise a partial file would keep occupying a full disk
        raise


def write_text_atomically(path: Path, content: str) -> None:
    """Write a text file, replacing an earlier one as a whole."""
    with replace_file_atomically(path) as file:
        file.write(content)


def parse_json(data: bytes | str, *, allow_surrogates: bool = False) -> Any:
    """Return the value of a JSON document. A byte order mark at its beginning is ignored.

    Args:
        data: the document.
        allow_surrogates: whether its strings may have lone surrogates, which no file and no terminal accepts.

    Raises ValueError if it is not UTF-8, not JSON, nested too deeply, or has lone surrogates.
    """
    text = data.decode("utf-8") if isinstance(data, bytes) else data
    try:
        value = json.loads(text.removeprefix("\ufeff"))
    except RecursionError:
        raise ValueError("nested too deeply") from None
    if not allow_surrogates and "\\u" in text:
        try:
            json.dumps(value, ensure_ascii=False).encode()
        except UnicodeEncodeError:
            raise ValueError("a string with a lone surrogate") from None
    return value


def ensure_writable_folder(folder: str | Path) -> Path:
    """Create a folder if it does not exist, and return its path.

    Raises InputError for an empty path, and for a folder that cannot be written to.
    """
    if not str(folder):
        raise InputError("out", "", "the path of a folder")
    path = Path(folder).expanduser()
    probe = path / f".{secrets.token_hex(8)}.probe"
    try:
        path.mkdir(parents=True, exist_ok=True)
        probe.write_text("")
        probe.unlink()
    except OSError as error:
        raise InputError("out", f"{folder} ({error.strerror})", "a folder that can be written") from None
    return path


@contextmanager
def replace_folder_atomically(folder: Path, manifest: str) -> Iterator[Path]:
    """Yield an empty temporary folder; if the block succeeds, move its files to `folder`, replacing earlier output.

    An exception or Ctrl-C in the block leaves `folder` as it was.

    Args:
        folder: the output folder; created if it does not exist.
        manifest: the name of a JSON file that the block must write. Its key `written` maps the name of every other file
            to its `file_state`. The next call replaces files that are still in this state. It never replaces other
            files, because the user added or changed them.

    Raises InputError if the folder cannot be written, contains files but no manifest, or if files of the user or of
    the model that the new files link to would be lost.
    """
    try:
        is_new = not folder.exists()
        foreign_file = None if is_new or _replaceable_names(folder, manifest) else next(folder.iterdir(), None)
    except OSError as error:
        raise InputError("out", f"{folder} ({error.strerror})", "a folder that can be read and written") from None
    if foreign_file is not None:
        raise InputError("out", str(foreign_file), "an empty folder, or one that an earlier export wrote")
    try:
        parent = ensure_writable_folder(folder)
        with tempfile.TemporaryDirectory(prefix=".", dir=parent, ignore_cleanup_errors=True) as temporary:
            new_files, old_files = Path(temporary) / "new", Path(temporary) / "old"
            new_files.mkdir()
            old_files.mkdir()
            yield new_files
            _swap_files(new_files, parent, old_files, manifest)
    finally:
        if is_new:
            with suppress(OSError):  # rmdir fails if the folder has content, or was never created
                folder.rmdir()


def file_state(path: Path) -> Any:
    """Return a JSON value that changes when a file changes.

    It is the target of a link, the size and modification time of a file, and for a folder, the states of its content.
    """
    if path.is_symlink():
        return os.readlink(path)
    if path.is_dir():
        return {entry.name: file_state(entry) for entry in sorted(path.iterdir())}
    status = path.stat()
    return [status.st_size, status.st_mtime_ns]


def _replaceable_names(folder: Path, manifest: str) -> set[str]:
    """Return the names of the manifest and of the files that are still in the state it records; none without one."""
    try:
        recorded = json.loads((folder / manifest).read_text(encoding="utf-8"))["written"]
        unchanged = {
            name for name in os.listdir(folder) if name in recorded and recorded[name] == file_state(folder / name)
        }
    except (OSError, ValueError, LookupError, TypeError, RecursionError):
        return set()
    return {manifest, *unchanged}


def _swap_files(new_files: Path, folder: Path, old_files: Path, manifest: str) -> None:
    """Move earlier output from `folder` to `old_files`, and the content of `new_files` to `folder`, or change nothing.

    Raises InputError if a new file would replace one of the user's, or links to a file that would be moved away.
    """
    new_names, old_names, root = os.listdir(new_files), _replaceable_names(folder, manifest), folder.resolve()
    for name in new_names:
        if name not in old_names and os.path.lexists(folder / name):
            raise InputError("out", str(folder / name), "another folder: that file is yours, and would be replaced")
        target = (new_files / name).resolve()
        if target.is_relative_to(root) and old_names.intersection(target.relative_to(root).parts[:1]):
            raise InputError("out", str(folder), f"another folder: the model's own {target.name} is in it")
    try:
        # Move the old manifest first and the new one last, so that an interrupted swap is not taken for an export.
        for name in sorted(old_names, key=lambda name: name != manifest):
            os.rename(folder / name, old_files / name)
        for name in sorted(new_names, key=lambda name: name == manifest):
            os.rename(new_files / name, folder / name)
    except BaseException:
        for name in new_names:
            if not os.path.lexists(new_files / name):
                os.rename(folder / name, new_files / name)
        for name in os.listdir(old_files):
            os.rename(old_files / name, folder / name)
        raise
