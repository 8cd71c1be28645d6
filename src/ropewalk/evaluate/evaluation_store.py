"""The folder of an evaluation: one SQLite file with every sample, and exports of it as JSON lines and CSV.

One process writes at a time; any number may read meanwhile. Each finished sample is one transaction, so a crash at
any moment loses at most the samples in flight.
"""

from __future__ import annotations

import csv
import json
import sqlite3
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ropewalk.errors import InputError
from ropewalk.evaluate.field_checks import (
    check_fields,
    describe_difference,
    is_count,
    is_list_of_texts,
    is_number,
    is_object,
    is_object_of_numbers,
    is_object_of_texts,
    is_optional_text,
    is_positive_count,
    is_text,
)
from ropewalk.evaluate.folder_lock import lock_folder
from ropewalk.evaluate.sample import SampleResult
from ropewalk.files import ensure_writable_folder, parse_json, replace_file_atomically
from ropewalk.server_address import remove_credentials

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
_SAMPLE_COLUMNS = "number, prompt, tokens, answer, refs, scores, about, seconds"  # in the order of SampleResult
_EXPORTED_FIELDS = ("task", "length", "scaling", "policy", "seed", "chat")  # of the description of a cell

# What the JSON of the file must have: readers rely on these types, and a file may be damaged.
_MODEL_CHECKS = {"model": is_text, "digest": is_text, "dtype": is_text}
_RUN_CHECKS = {"started": is_text, "command": is_text, "versions": is_object_of_texts}
_DESCRIPTION_CHECKS = {
    "task": is_text,
    "task_name": is_text,
    "task_version": is_count,
    "task_options": is_object,
    "fingerprint": is_object_of_texts,
    "main": is_text,
    "better": lambda value: value in ("higher", "lower"),
    "share": lambda value: isinstance(value, bool),
    "scaling": is_text,
    "scaling_options": is_object,
    "policy": is_optional_text,
    "column": is_text,
    "length": is_positive_count,
    "samples": is_positive_count,
    "seed": lambda value: type(value) is int,
}
_SAMPLE_CHECKS = {
    "index": is_count,
    "prompt": is_text,
    "tokens": is_count,
    "answer": is_text,
    "references": is_list_of_texts,
    "scores": lambda value: is_object(value) and all(is_number(n) for n in value.values() if type(n) in (int, float)),
    "about": is_object,
    "seconds": is_number,
}
_ABOUT_CHECKS = {"depth": lambda value: is_number(value) and 0 <= value <= 1, "group": is_text, "bin": is_text}


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
        self.folder = Path(folder).expanduser() if model is None else ensure_writable_folder(folder)
        self.path = self.folder / _FILE
        self._lock = None if model is None else lock_folder(self.folder, _FILE)
        if model is None and not (str(folder) and self.path.exists()):
            raise InputError("folder", str(folder), f"the folder of an evaluation, with a {_FILE}")
        try:
            self._open(model)
        except BaseException:
            self.close()
            raise

    def _open(self, model: Mapping[str, Any] | None) -> None:
        uri = f"{self.path.resolve().as_uri()}?mode={'rw' if self.path.exists() else 'rwc'}"
        with self._damage_as_input_error():
            self._database = sqlite3.connect(uri, uri=True, timeout=30, isolation_level=None, check_same_thread=False)
            is_empty = not self._database.execute("select 1 from sqlite_master").fetchone()
            if model is not None and is_empty:  # also if an earlier process was killed while it created the tables
                self._create(model)
            self._check(model)

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
        row = self._database.execute("select value from about where name = 'model'").fetchone()
        self.model: dict[str, Any] = check_fields(_from_json(row and row[0]), _MODEL_CHECKS)
        if is_text(self.model.get("server")):
            self.model["server"] = remove_credentials(self.model["server"])  # which earlier versions stored
        for name, value in (model or {}).items():
            if name != "model" and self.model.get(name) != value:  # the same model may be given by another name
                difference = describe_difference(name, self.model.get(name), value)
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
            run = [now, remove_credentials(command), _to_json(versions)]
            self._database.execute("insert into runs values (?, ?, ?)", run)
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
        with self._damage_as_input_error():
            query = f"select {_SAMPLE_COLUMNS} from samples where cell = ? order by number"
            results = [_sample_result(row) for row in self._database.execute(query, [key])]
            return {result["index"]: result for result in results}

    def finished_keys(self) -> set[str]:
        """Return the keys of the cells whose samples are all finished."""
        with self._damage_as_input_error():
            return {row[0] for row in self._database.execute("select key from cells where summary is not null")}

    def cells(self) -> list[CellResult]:
        """Return all cells, those of the last run in its order."""
        return list(self._iterate_cells())

    def _iterate_cells(self) -> Iterator[CellResult]:
        """Yield the cells one by one: their answers need much more memory than the rest."""
        with self._damage_as_input_error():
            rows = self._database.execute("select key, described, summary from cells order by place, rowid").fetchall()
        for key, described, summary in rows:
            with self._damage_as_input_error():
                description = check_fields(_from_json(described), _DESCRIPTION_CHECKS)
                description.setdefault("chat", False)  # which earlier versions did not store
                check_fields(description, {"chat": lambda value: isinstance(value, bool)})
                scores = None if summary is None else _from_json(summary)
                if scores is not None and not is_object_of_numbers(scores):
                    raise ValueError(f"the summary of {description['task']}")
            yield CellResult(key, description, scores, list(self.sample_results(key).values()))

    def runs(self) -> list[dict[str, Any]]:
        """Return the start time, command and versions of every run, the last run last."""
        runs = []
        with self._damage_as_input_error():
            for started, command, versions in self._database.execute(
                "select started, command, versions from runs order by rowid"
            ):
                run = {"started": started, "command": command, "versions": _from_json(versions)}
                run = check_fields(run, _RUN_CHECKS)
                runs.append({**run, "command": remove_credentials(command)})  # which earlier versions stored
        return runs

    def export(self) -> None:
        """Write samples.jsonl, with one line per sample, and cells.csv, with one row per score of a cell."""
        with (
            replace_file_atomically(self.folder / "samples.jsonl") as lines,
            replace_file_atomically(self.folder / "cells.csv") as table,
        ):
            writer = csv.writer(table)
            writer.writerow([*_EXPORTED_FIELDS, "score", "value", "samples"])
            for cell in self._iterate_cells():
                fields = {name: cell.description[name] for name in _EXPORTED_FIELDS}
                for result in cell.sample_results:
                    lines.write(_to_json({**fields, **result}) + "\n")
                for score, value in (cell.summary or {}).items():
                    writer.writerow([*fields.values(), score, value, len(cell.sample_results)])

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

    @contextmanager
    def _damage_as_input_error(self) -> Iterator[None]:
        """Raise InputError in place of the errors that a damaged file causes."""
        try:
            yield
        except InputError:
            raise
        except (sqlite3.Error, ValueError, OverflowError) as error:
            found = f"{self.path}, which cannot be read ({error})"
            raise InputError("out", found, "a whole database, or a new folder") from None


def _sample_result(row: Sequence[Any]) -> SampleResult:
    """Return the sample of a row of the table `samples`. Raises ValueError if it is damaged."""
    fields = dict(zip(SampleResult.__annotations__, row, strict=True))
    for name in ("references", "scores", "about"):
        fields[name] = _from_json(fields[name])
    check_fields(fields, _SAMPLE_CHECKS)
    check_fields(fields["about"], {name: check for name, check in _ABOUT_CHECKS.items() if name in fields["about"]})
    return SampleResult(**fields)  # type: ignore[typeddict-item]


def _from_json(text: Any) -> Any:
    """Return the value of a JSON column. Raises ValueError if it holds no JSON."""
    if not isinstance(text, str):
        raise ValueError("no JSON where it belongs")
    return parse_json(text)


def _to_json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)
