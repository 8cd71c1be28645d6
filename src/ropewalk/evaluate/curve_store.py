"""The folder of a curve: curve.json and curve.csv, written anew with every row, and read back to go on."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from ropewalk.errors import InputError
from ropewalk.evaluate.perplexity import CurveRow, Key, key
from ropewalk.files import writable_folder, write_whole


class CurveStore:
    """The rows of one model on one text, in a folder.

    A row is on disk, whole, when `add` returns: a file is written beside the old one and takes its place.
    """

    def __init__(self, folder: str | Path, header: dict[str, Any]) -> None:
        """Open or create.

        `header`: what the rows belong to (model, text and its digest, dtype, ...), ready for JSON.
        Raises InputError when the folder cannot be written, is damaged, or holds another header's rows.
        """
        self.folder = writable_folder(folder)
        self.header = header
        self.rows: dict[Key, CurveRow] = {}
        if self.json_path.exists():
            self._read()

    @property
    def json_path(self) -> Path:
        return self.folder / "curve.json"

    @property
    def figure_path(self) -> Path:
        return self.folder / "curve.png"

    def add(self, row: CurveRow) -> None:
        """Keep a row."""
        self.rows[key(row)] = row
        everything = list(self.rows.values())
        write_whole(self.json_path, json.dumps(self.document(everything), indent=1) + "\n")
        table = io.StringIO(newline="")
        writer = csv.DictWriter(table, fieldnames=list(CurveRow.__annotations__))
        writer.writeheader()
        writer.writerows(everything)
        write_whole(self.folder / "curve.csv", table.getvalue())

    def document(self, rows: Iterable[CurveRow]) -> dict[str, Any]:
        """The JSON document of these rows; what a row does not have (a chunk, a policy) is left out."""
        shown = [{name: value for name, value in row.items() if value is not None} for row in rows]
        return {**self.header, "rows": shown}

    def _read(self) -> None:
        try:
            held = json.loads(self.json_path.read_text(encoding="utf-8"))
            rows = [_row(row) for row in held.pop("rows")]
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise InputError(
                "out", f"{self.json_path}, which cannot be read ({error})", "a folder of a curve"
            ) from None
        for name, value in self.header.items():
            if held.get(name) != value:
                found = f"{self.json_path} of another run ({name} {held.get(name)!r}, now {value!r})"
                raise InputError("out", found, "a new folder, or the one of the same model and text")
        self.rows = {key(row): row for row in rows}


def _row(written: dict[str, Any]) -> CurveRow:
    whole = {"chunk": None, "policy": None, **written}
    return CurveRow(**{name: whole[name] for name in CurveRow.__annotations__})  # type: ignore[typeddict-item]
