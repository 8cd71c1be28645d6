"""The folder of an evaluation: one SQLite file, one writer, one transaction a finished sample."""

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
from ropewalk.files import writable_folder, write_whole

_FILE = "results.sqlite"
_APPLICATION = 0x726F7065  # "rope": tells our files from other programs'
_VERSION = 1
_TABLES = """
create table about (name text primary key, value text not null) without rowid;
create table runs (started text not null, command text not null, versions text not null);
create table cells (key text primary key, place integer not null, described text not null, summary text);
create table samples (
    cell text not null references cells, number integer not null, prompt text not null, tokens integer not null,
    answer text not null, refs text not null, scores text not null, about text not null, seconds real not null,
    primary key (cell, number)
) without rowid;
"""


@dataclass(frozen=True)
class CellResult:
    """What is known of a cell: `described` says what it is; `summary` is None until its last sample is in."""

    key: str
    description: dict[str, Any]
    summary: dict[str, float] | None
    sample_results: list[SampleResult]


class EvaluationStore:
    """The cells and samples of one model, in a folder.

    A sample is on disk, whole, when `add` returns. One process writes at a time; any number may read meanwhile.
    """

    def __init__(self, folder: str | Path, model: Mapping[str, Any] | None = None) -> None:
        """Open a folder: to write results of `model` (its description, ready for JSON), or without it to read.

        Raises InputError when another process writes there, or the folder holds something else, is damaged, or
        belongs to another model.
        """
        self._lock: FileLock | None = None
        self.folder = Path(folder).expanduser() if model is None else writable_folder(folder)
        self.path = self.folder / _FILE
        if model is not None:
            self._take_lock()
        elif not self.path.exists():
            raise InputError("folder", str(folder), f"the folder of an evaluation, with a {_FILE}")
        try:
            self._open(model)
        except BaseException:
            self.close()
            raise

    def _take_lock(self) -> None:
        path = self.folder / f".{_FILE}.lock"
        lock = FileLock(path)
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
            if model is not None and not self._database.execute("select 1 from sqlite_master").fetchone():
                self._create(model)  # new, or its making was cut off
            self._check(model)
        except sqlite3.Error as error:
            raise InputError("out", f"{self.path}, which cannot be read ({error})", "a whole database") from None

    def _create(self, model: Mapping[str, Any]) -> None:
        with self._transaction():
            for statement in _TABLES.split(";"):
                self._database.execute(statement)
            self._database.execute("insert into about values ('model', ?)", [_dump(model)])
            self._database.execute(f"pragma application_id = {_APPLICATION}")
            self._database.execute(f"pragma user_version = {_VERSION}")

    def _check(self, model: Mapping[str, Any] | None) -> None:
        owner, version = (self._database.execute(f"pragma {name}").fetchone()[0] for name in _MARKS)
        if owner != _APPLICATION:
            raise InputError("out", f"{self.path}, a database of another program", "a folder of its own")
        if version != _VERSION:
            raise InputError("out", f"{self.path} of format {version}", f"format {_VERSION}, which this version writes")
        state = self._database.execute("pragma quick_check(1)").fetchone()[0]
        if state != "ok":
            raise InputError("out", f"{self.path}, which is damaged ({state})", "a whole database, or a new folder")
        self.model: dict[str, Any] = json.loads(
            self._database.execute("select value from about where name = 'model'").fetchone()[0]
        )
        for name, value in (model or {}).items():
            if name != "model" and self.model.get(name) != value:  # a model may be called by several names
                found = f"{self.folder} of another run ({name} {self.model.get(name)!r}, now {value!r})"
                raise InputError("out", found, "a new folder, or the one of the same model")

    def close(self) -> None:
        """Give the folder free."""
        if hasattr(self, "_database"):
            self._database.close()
        if self._lock is not None:
            self._lock.release()

    def __enter__(self) -> EvaluationStore:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def begin(self, command: str, versions: Mapping[str, str], cells: Mapping[str, Mapping[str, Any]]) -> None:
        """Note a run: what was asked for, with which versions, and the cells by key in the order to show them."""
        with self._transaction():
            now = time.strftime("%Y-%m-%d %H:%M:%S")
            self._database.execute("insert into runs values (?, ?, ?)", [now, command, _dump(versions)])
            self._database.execute(
                "delete from cells where summary is null and key not in (select cell from samples)"
            )  # what an earlier run asked for and never began
            for place, (key, description) in enumerate(cells.items()):
                self._database.execute(
                    "insert into cells values (?, ?, ?, null) on conflict (key) do update set place = excluded.place",
                    [key, place, _dump(description)],
                )

    def add(self, key: str, outcome: SampleResult) -> None:
        """Keep a finished sample of the cell."""
        row = [_dump(value) if isinstance(value, dict | list) else value for value in outcome.values()]
        with self._transaction():
            self._database.execute(f"insert or replace into samples values (?{', ?' * len(row)})", [key, *row])

    def finish(self, key: str, summary: Mapping[str, float]) -> None:
        """Keep the summary of the cell: all its samples are in."""
        with self._transaction():
            self._database.execute("update cells set summary = ? where key = ?", [_dump(summary), key])

    def sample_results(self, key: str) -> dict[int, SampleResult]:
        """The finished samples of a cell, by their number."""
        rows = self._read("select * from samples where cell = ? order by number", key)
        return {row[1]: _outcome(row) for row in rows}

    def finished(self) -> set[str]:
        """The keys of the cells whose samples are all in."""
        return {row[0] for row in self._read("select key from cells where summary is not null")}

    def cells(self) -> list[CellResult]:
        """All cells in the order of the last run, with what is known of them."""
        rows = self._read("select key, described, summary from cells order by place, rowid")
        return [
            CellResult(
                key,
                json.loads(about),
                None if summary is None else json.loads(summary),
                [*self.sample_results(key).values()],
            )
            for key, about, summary in rows
        ]

    def runs(self) -> list[dict[str, Any]]:
        """When and how the folder was written to: started, command, versions; the last run last."""
        rows = self._read("select started, command, versions from runs order by rowid")
        return [{"started": s, "command": c, "versions": json.loads(v)} for s, c, v in rows]

    def export(self) -> None:
        """Write samples.jsonl, every sample with its cell, and cells.csv, a row for each score of a cell."""
        cells = self.cells()
        lines = [
            _dump({**{name: cell.description[name] for name in _SHOWN}, **outcome}) + "\n"
            for cell in cells
            for outcome in cell.sample_results
        ]
        write_whole(self.folder / "samples.jsonl", "".join(lines))
        table = io.StringIO(newline="")
        writer = csv.writer(table)
        writer.writerow([*_SHOWN, "score", "value", "samples"])
        for cell in cells:
            for name, value in (cell.summary or {}).items():
                writer.writerow([*(cell.description[each] for each in _SHOWN), name, value, len(cell.sample_results)])
        write_whole(self.folder / "cells.csv", table.getvalue())

    @contextmanager
    def _transaction(self) -> Iterator[None]:
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
                f"{self.path} cannot be written ({error}); what it holds is safe, and the same command goes on there"
            ) from None

    def _read(self, query: str, *values: str) -> list[Any]:
        try:
            return self._database.execute(query, values).fetchall()
        except sqlite3.Error as error:
            raise RuntimeError(f"{self.path} cannot be read ({error})") from None


_MARKS = ("application_id", "user_version")
_SHOWN = ("task", "length", "scaling", "policy", "seed")


def _outcome(row: Sequence[Any]) -> SampleResult:
    _, number, prompt, tokens, answer, references, scores, about, seconds = row
    return SampleResult(
        index=number,
        prompt=prompt,
        tokens=tokens,
        answer=answer,
        references=json.loads(references),
        scores=json.loads(scores),
        about=json.loads(about),
        seconds=seconds,
    )


def _dump(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)
