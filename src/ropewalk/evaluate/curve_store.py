"""The rows of a perplexity curve, and the folder that stores them.

A folder holds the rows of one model on one text: `curve.json`, which is read back to resume, and the same rows as
`curve.csv`. `curve.json` also has the losses on short text, from which the short tax follows. Both files are replaced
as a whole with every row, so a crash leaves the previous version. One process writes at a time.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple, TypedDict

from ropewalk.errors import InputError
from ropewalk.evaluate.field_checks import (
    check_fields,
    describe_difference,
    is_count,
    is_list_of_numbers,
    is_number,
    is_optional_text,
    is_positive_count,
    is_text,
)
from ropewalk.evaluate.folder_lock import lock_folder
from ropewalk.files import ensure_writable_folder, parse_json, write_text_atomically

_FILE = "curve.json"
_HEADER_CHECKS = {"model": is_text, "text": is_text, "dtype": is_text, "rows": lambda rows: isinstance(rows, list)}
_ROW_CHECKS = {
    "scaling": is_text,
    "chunk": lambda value: value is None or is_positive_count(value),
    "policy": is_optional_text,
    "length": is_positive_count,
    **{name: lambda value: is_number(value) and value > 0 for name in ("ppl", "ppl_last")},
    "nll": is_number,
    "tokens": is_count,
    "seconds": is_number,
    "longppl": lambda value: value is None or (is_number(value) and value > 0),
    "key_tokens": lambda value: value is None or is_count(value),
    "key_tokens_digest": is_optional_text,
    "evaluator": is_optional_text,
}
_SHORT_TEXT_CHECKS = {
    "scaling": is_text,
    "tokens": is_positive_count,
    "losses": lambda value: is_list_of_numbers(value) and bool(value),
}
_OPTIONAL_FIELDS = ("chunk", "policy", "longppl", "key_tokens", "key_tokens_digest", "evaluator")


class CurveRow(TypedDict):
    """One measured point of a perplexity curve.

    Keys:
        scaling: spec of the scaling.
        chunk: tokens per forward call through the KV cache; None if the text was read at the frequencies of `length`.
        policy: spec of the policy that a dynamic scaling followed; None if its frequencies were fixed.
        length: tokens read.
        ppl: perplexity over the first `length` tokens.
        ppl_last: perplexity over the last 1,024 of them.
        nll: mean loss in nats over the predicted tokens.
        tokens: number of predicted tokens, which is `length` - 1.
        seconds: time that the pass needed to reach `length`.
        longppl: perplexity over the key tokens among them; None without any, or if it was not requested.
        key_tokens: number of key tokens; None if they were not requested.
        key_tokens_digest: tells them from others; None if they were not requested.
        evaluator: name of the evaluator that found the key tokens; None if they were not requested.
    """

    scaling: str
    chunk: int | None
    policy: str | None
    length: int
    ppl: float
    ppl_last: float
    nll: float
    tokens: int
    seconds: float
    longppl: float | None
    key_tokens: int | None
    key_tokens_digest: str | None
    evaluator: str | None


class RowKey(NamedTuple):
    """What identifies a row among those of one model and text."""

    scaling: str
    chunk: int | None
    policy: str | None
    length: int


def row_key(row: CurveRow) -> RowKey:
    """Return the key of a row."""
    return RowKey(row["scaling"], row["chunk"], row["policy"], row["length"])


class CurveStore:
    """The folder of a curve.

    Attributes:
        folder: the folder.
        rows: the stored rows by key.
        short_losses: the mean losses of the windows of the short text, in nats, by scaling and tokens read.
    """

    def __init__(self, folder: str | Path, header: dict[str, Any]) -> None:
        """Open or create the folder.

        Args:
            folder: it may hold rows of the same header, to which more are added.
            header: what the rows were measured on (model and its digest, text and its digest, dtype), ready for JSON.
                All of it must be the same but `model`, since the same model may be given by another name.

        Raises InputError if the folder cannot be written, is damaged, or holds rows of another header.
        """
        self.folder = ensure_writable_folder(folder)
        self.header = header
        self.rows: dict[RowKey, CurveRow] = {}
        self.short_losses: dict[tuple[str, int], list[float]] = {}
        self._read()

    @property
    def json_path(self) -> Path:
        return self.folder / _FILE

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Within the block, let no other process write; `rows` then has those that others have stored until now.

        Raises InputError if another process writes.
        """
        lock = lock_folder(self.folder, _FILE)
        try:
            self._read()
            yield
        finally:
            lock.release()

    def add(self, row: CurveRow) -> None:
        """Store a row; call it within `locked`. The row is on disk when this returns."""
        self.rows[row_key(row)] = row
        self._write()

    def add_short_losses(self, scaling: str, tokens: int, losses: list[float]) -> None:
        """Store the losses of a scaling on short text; call it within `locked`."""
        self.short_losses[scaling, tokens] = losses
        self._write()

    def document(self, rows: Iterable[CurveRow]) -> dict[str, Any]:
        """Return the JSON document of these rows, with the header. Fields that are None are left out."""
        shown = [{name: value for name, value in row.items() if value is not None} for row in rows]
        return {**self.header, "rows": shown}

    def _write(self) -> None:
        rows = list(self.rows.values())
        document = self.document(rows)
        if self.short_losses:
            document["short_text"] = [
                {"scaling": scaling, "tokens": tokens, "losses": losses}
                for (scaling, tokens), losses in self.short_losses.items()
            ]
        write_text_atomically(self.json_path, json.dumps(document, indent=1) + "\n")
        table = io.StringIO(newline="")
        writer = csv.DictWriter(table, fieldnames=list(CurveRow.__annotations__))
        writer.writeheader()
        writer.writerows(rows)
        write_text_atomically(self.folder / "curve.csv", table.getvalue())

    def _read(self) -> None:
        """Read what is stored. Raises InputError if it is damaged, or of another run."""
        if not self.json_path.exists():
            return
        stored, rows = read_curve(self.folder, "out")
        for name, value in self.header.items():
            if name != "model" and stored.get(name) != value:
                difference = describe_difference(name, stored.get(name), value)
                expected = "a new folder, or one of the same model, text and dtype"
                raise InputError("out", str(self.json_path), expected, difference)
        self.rows = {row_key(row): row for row in rows}
        self.short_losses = {(each["scaling"], each["tokens"]): each["losses"] for each in stored["short_text"]}


def read_curve(folder: str | Path, field: str) -> tuple[dict[str, Any], list[CurveRow]]:
    """Return the header (with `short_text`, the losses on short text) and the rows of a stored curve.

    `field`: the option that names the folder. Raises InputError if there is no curve, or a damaged one.
    """
    path = Path(folder).expanduser() / _FILE
    try:
        header = check_fields(parse_json(path.read_bytes()), _HEADER_CHECKS)
        rows = [_complete_row(fields) for fields in header.pop("rows")]
        short_text = header.setdefault("short_text", [])  # versions without it have no short tax
        if not isinstance(short_text, list):
            raise ValueError(f"short_text is {str(short_text)[:100]}")
        for losses in short_text:
            check_fields(losses, _SHORT_TEXT_CHECKS)
    except (OSError, ValueError) as error:
        expected = "a folder of a curve, or a new one" if field == "out" else "a folder that ropewalk curve wrote"
        raise InputError(field, f"{path}, which cannot be read ({error})", expected) from None
    return header, rows


def _complete_row(fields: Any) -> CurveRow:
    """Return the row of these JSON fields, with None for those that `document` left out. Raises ValueError."""
    completed = {**dict.fromkeys(_OPTIONAL_FIELDS), **fields} if isinstance(fields, dict) else fields
    checked = check_fields(completed, _ROW_CHECKS)
    return CurveRow(**{name: checked[name] for name in CurveRow.__annotations__})  # type: ignore[typeddict-item]
