"""The folder of an evaluation: one SQLite file with every sample, and exports of it as JSON lines and CSV.

One process writes at a time; any number may read meanwhile. Each finished sample is one transaction, so a crash at
any moment loses at most the samples in flight.
"""

from __future__ import annotations

import csv
import io
import json
import sqlite3
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from ropewalk.errors import InputError
from ropewalk.evaluate.sample import SampleResult
from ropewalk.files import ensure_writable_folder, write_text_atomically

_FILE = "results.sqlite"
_APPLICATION_ID = 0x726F7065  # "rope"; SQLite stores it in the file, where it marks a database of ropewalk
_FORMAT_VERSION = 1
# `samples` has the columns of SampleResult in its order, under other names where SQL reserves one.
_SCHEMA = """
create table about (name text primary key, value text not null) without rowid;
create table runs (started text not null, command text not null, versions text not null);
create table cells (key text primary key, place integer not null, described text not null, summary text);
create table samples (
    cell text not null references cells, number integer not null, prompt text not null, tokens integer not null,
    answer text not null, refs text not null, scores text not null, about text not null, seconds real not null,
    primary key (cell, number)
) without rowid;
"""
_EXPORTED_FIELDS = ("task", "length", "scaling", "policy", "seed")  # of the description of a cell


@dataclass(frozen=True)
class CellResult:
    """A cell with its results so far.

    Attributes:
        key: key of the cell.
        description: see `Cell.describe`.
        summary: scores of the whole cell; None until all its samples are finished.
        sample_results: the finished samples, ordered by index.
    """

    key: str
    description: dict[str, Any]
    summary: dict[str, float] | None
    sample_results: list[SampleResult]


class EvaluationStore:
    """The cells and samples of one model, in a folder.

    Attributes:
        folder: the folder.
        path: the SQLite file.
        model: description of the model that the results belong to.
    """

    def __init__(self, folder: str | Path, model: Mapping[str, Any] | None = None) -> None:
        """Open the folder.

        Args:
            folder: folder of the results.
            model: description of the model whose results will be written, ready for JSON; None to open the folder for
                reading only.

        Raises InputError if another process writes there, or if the folder holds something else, is damaged, or
        belongs to another model.
        """
        self._lock: FileLock | None = None
        self.folder = Path(folder).expanduser() if model is None else ensure_writable_folder(folder)
        self.path = self.folder / _FILE
        if model is not None:
            self._acquire_lock()
        elif not self.path.exists():
            raise InputError("folder", str(folder), f"the folder of an evaluation, with a {_FILE}")
        try:
            self._open(model)
        except BaseException:
            self.close()
            raise

    def _acquire_lock(self) -> None:
        lock = FileLock(self.folder / f".{_FILE}.lock")
        try:
            lock.acquire(timeout=0)
        except Timeout:
            found = f"{self.folder}, to which another process writes"
            raise InputError("out", found, "another folder, or the same once that process has ended") from None
        self._lock = lock

    def _open(self, model: Mapping[str, Any] | None) -> None:
        uri = f"{self.path.resolve().as_uri()}?mode={'rw' if self.path.exists() else 'rwc'}"
        try:
            self._database = sqlite3.connect(uri, uri=True, timeout=30, isolation_level=None, check_same_thread=False)
            is_empty = not self._database.execute("select 1 from sqlite_master").fetchone()
            if model is not None and is_empty:  # also if an earlier process was killed while it created the tables
                self._create(model)
            self._check(model)
        except sqlite3.Error as error:
            raise InputError("out", f"{self.path}, which cannot be read ({error})", "a whole database") from None

    def _create(self, model: Mapping[str, Any]) -> None:
        with self._transaction():
            for statement in _SCHEMA.split(";"):
                self._database.execute(statement)
            self._database.execute("insert into about values ('model', ?)", [_to_json(model)])
            self._database.execute(f"pragma application_id = {_APPLICATION_ID}")
            self._database.execute(f"pragma user_version = {_FORMAT_VERSION}")

    def _check(self, model: Mapping[str, Any] | None) -> None:
        """Raise InputError unless the file is a whole database of this format and, when writing, of this model."""
        if self._pragma("application_id") != _APPLICATION_ID:
            raise InputError("out", f"{self.path}, a database of another program", "a folder of ropewalk eval")
        version = self._pragma("user_version")
        if version != _FORMAT_VERSION:
            raise InputError("out", f"{self.path} of format {version}", f"format {_FORMAT_VERSION}")
        state = self._pragma("quick_check(1)")
        if state != "ok":
            raise InputError("out", f"{self.path}, which is damaged ({state})", "a whole database, or a new folder")
        self.model: dict[str, Any] = json.loads(
            self._database.execute("select value from about where name = 'model'").fetchone()[0]
        )
        for name, value in (model or {}).items():
            if name != "model" and self.model.get(name) != value:  # the same model may be given by another name
                difference = f"it is of another run: {name} {self.model.get(name)!r}, now {value!r}"
                raise InputError("out", str(self.folder), "a new folder, or the one of the same model", difference)

    def _pragma(self, name: str) -> Any:
        return self._database.execute(f"pragma {name}").fetchone()[0]

    def close(self) -> None:
        """Close the file and let other processes write to the folder."""
        if hasattr(self, "_database"):
            self._database.close()
        if self._lock is not None:
            self._lock.release()

    def __enter__(self) -> EvaluationStore:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def begin(self, command: str, versions: Mapping[str, str], cells: Mapping[str, Mapping[str, Any]]) -> None:
        """Record the start of a run.

        Args:
            command: command line.
            versions: versions of Python and of packages.
            cells: descriptions of the cells to compute, by key, in the order to show them.
        """
        with self._transaction():
            now = time.strftime("%Y-%m-%d %H:%M:%S")
            self._database.execute("insert into runs values (?, ?, ?)", [now, command, _to_json(versions)])
            self._database.execute(
                "delete from cells where summary is null and key not in (select cell from samples)"
            )  # cells that an earlier run never started, for example because of a typo in its task
            for place, (key, description) in enumerate(cells.items()):
                self._database.execute(
                    "insert into cells values (?, ?, ?, null) on conflict (key) do update set place = excluded.place",
                    [key, place, _to_json(description)],
                )

    def add(self, key: str, result: SampleResult) -> None:
        """Store a finished sample of a cell. It is on disk when this returns."""
        row = [_to_json(value) if isinstance(value, dict | list) else value for value in result.values()]
        with self._transaction():
            self._database.execute(f"insert or replace into samples values (?{', ?' * len(row)})", [key, *row])

    def finish(self, key: str, summary: Mapping[str, float]) -> None:
        """Store the summary of a cell whose samples are all finished."""
        with self._transaction():
            self._database.execute("update cells set summary = ? where key = ?", [_to_json(summary), key])

    def sample_results(self, key: str) -> dict[int, SampleResult]:
        """Return the finished samples of a cell by index."""
        rows = self._read("select * from samples where cell = ? order by number", key)
        return {row[1]: _sample_result(row) for row in rows}

    def finished_keys(self) -> set[str]:
        """Return the keys of the cells whose samples are all finished."""
        return {row[0] for row in self._read("select key from cells where summary is not null")}

    def cells(self) -> list[CellResult]:
        """Return all cells, those of the last run in its order."""
        cells = []
        for key, description, summary in self._read("select key, described, summary from cells order by place, rowid"):
            scores = None if summary is None else json.loads(summary)
            cells.append(CellResult(key, json.loads(description), scores, list(self.sample_results(key).values())))
        return cells

    def runs(self) -> list[dict[str, Any]]:
        """Return the start time, command and versions of every run, the last run last."""
        rows = self._read("select started, command, versions from runs order by rowid")
        return [
            {"started": started, "command": command, "versions": json.loads(versions)}
            for started, command, versions in rows
        ]

    def export(self) -> None:
        """Write samples.jsonl, with one line per sample, and cells.csv, with one row per score of a cell."""
        lines = []
        table = io.StringIO(newline="")
        writer = csv.writer(table)
        writer.writerow([*_EXPORTED_FIELDS, "score", "value", "samples"])
        for cell in self.cells():
            fields = {name: cell.description[name] for name in _EXPORTED_FIELDS}
            lines += [_to_json({**fields, **result}) + "\n" for result in cell.sample_results]
            for score, value in (cell.summary or {}).items():
                writer.writerow([*fields.values(), score, value, len(cell.sample_results)])
        write_text_atomically(self.folder / "samples.jsonl", "".join(lines))
        write_text_atomically(self.folder / "cells.csv", table.getvalue())

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        """Commit what the block executes, or roll it back if the block raises."""
        try:
            self._database.execute("begin immediate")
            yield
            self._database.execute("commit")
        except BaseException as error:
            if self._database.in_transaction:
                self._database.execute("rollback")
            if not isinstance(error, sqlite3.Error):
                raise
            raise RuntimeError(
                f"{self.path} cannot be written ({error}); the results in it are safe, and the same command continues "
                "from there"
            ) from None

    def _read(self, query: str, *values: str) -> list[Any]:
        try:
            return self._database.execute(query, values).fetchall()
        except sqlite3.Error as error:
            raise RuntimeError(f"{self.path} cannot be read ({error})") from None


def _sample_result(row: Sequence[Any]) -> SampleResult:
    """Return the sample of a row of the table `samples`."""
    fields = dict(zip(SampleResult.__annotations__, row[1:], strict=True))  # without the key of the cell
    for name in ("references", "scores", "about"):
        fields[name] = json.loads(fields[name])
    return SampleResult(**fields)  # type: ignore[typeddict-item]


def _to_json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)
