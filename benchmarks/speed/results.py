"""The results file of one device and one day. It is complete after every measurement."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from datetime import datetime
from pathlib import Path
from typing import Any

import torch

from benchmarks.speed.environment import describe_device, file_name_for, package_versions, system_settings
from ropewalk.errors import InputError
from ropewalk.files import ensure_writable_folder, write_text_atomically

_PACKAGES = ("torch", "transformers", "numpy", "triton")


class ResultsFile:
    """DEVICE-DATE.json, to which this run is added. Runs that are already in the file stay.

    Attributes:
        path: the file.
        run: this run: `bench`, `started`, `command`, `versions`, system settings, details of the benchmark, and `rows`.
    """

    def __init__(
        self,
        folder: str | Path,
        bench: str,
        device: torch.device,
        command: str,
        packages: Iterable[str],
        details: Mapping[str, Any],
    ) -> None:
        """Begin a run; nothing is written before the first row.

        Args:
            folder: where the file is or will be.
            bench: "rotate", "curve" or "decode".
            device: the device that is measured.
            command: the command line, for the file.
            packages: distributions whose versions to record in addition to torch's and the like.
            details: what is measured, such as the model and the scaling.

        Raises InputError if the folder cannot be written or the file there was not written by this class.
        """
        now = datetime.now().astimezone()
        self._header = {"device": describe_device(device), "date": f"{now:%Y-%m-%d}"}
        name = f"{file_name_for(self._header['device'])}-{self._header['date']}.json"
        self.path = ensure_writable_folder(folder) / name
        self.run: dict[str, Any] = {
            "bench": bench,
            "started": now.isoformat(),
            "command": command,
            "versions": package_versions((*_PACKAGES, *packages)),
            **system_settings(),
            **details,
            "rows": [],
        }
        self._read_other_runs()

    def add_row(self, row: dict[str, Any]) -> None:
        """Add a row to the run and write the file."""
        self.run["rows"].append(row)
        document = {**self._header, "runs": [*self._read_other_runs(), self.run]}
        write_text_atomically(self.path, json.dumps(document, indent=1) + "\n")

    @property
    def document(self) -> dict[str, Any]:
        """The device, the date and this run, as one JSON document."""
        return {**self._header, **self.run}

    def _read_other_runs(self) -> list[dict[str, Any]]:
        """Read the other runs in the file, each time, because another process may add to it meanwhile."""
        try:
            runs = json.loads(self.path.read_text(encoding="utf-8"))["runs"] if self.path.exists() else []
            return [run for run in runs if run["started"] != self.run["started"]]
        except (OSError, ValueError, LookupError, TypeError):
            raise InputError("out", str(self.path), "a folder in which this file, if any, is a results file") from None


class NotMeasuredError(Exception):
    """Something cannot be measured here; the message is the reason."""


def describe_failure(error: Exception) -> str:
    """Return why something was not measured, in one line of at most 200 characters after the type of the error."""
    lines = str(error).strip().splitlines()
    message = lines[0][:200] if lines else ""
    return message if isinstance(error, NotMeasuredError) else f"{type(error).__name__}: {message}"
