"""The file of a device and a day: what every run of a bench measured, whole after every case."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from datetime import datetime
from pathlib import Path
from typing import Any

import torch
from benchmarks.speed.device import device_name, slug, surroundings, versions

from ropewalk.errors import InputError
from ropewalk.files import writable_folder, write_whole

_PACKAGES = ("ropewalk", "torch", "transformers", "numpy", "triton")


class Results:
    """DEVICE-DATE.json in a folder, and in it one run of one bench; the runs that are there stay.

    Attributes:
        path: of the file.
        run: what is measured now: `bench`, `started`, `command`, `versions`, `surroundings`, what it is told of itself,
            `rows`.
    """

    def __init__(
        self,
        folder: str | Path,
        bench: str,
        device: torch.device,
        command: str,
        packages: Iterable[str],
        about: Mapping[str, Any],
    ) -> None:
        """`packages`: whose versions to keep beside the usual; `about`: what was measured.

        Raises InputError for a folder that cannot be written, and a file there that is none of these.
        """
        now = datetime.now().astimezone()
        self._about = {"device": device_name(device), "date": f"{now:%Y-%m-%d}"}
        self.path = writable_folder(folder) / f"{slug(self._about['device'])}-{self._about['date']}.json"
        self.run: dict[str, Any] = {
            "bench": bench,
            "started": now.isoformat(),
            "command": command,
            "versions": versions((*_PACKAGES, *packages)),
            **surroundings(),
            **about,
            "rows": [],
        }
        self._others()

    def add(self, row: dict[str, Any]) -> None:
        """Keep one more case."""
        self.run["rows"].append(row)
        write_whole(self.path, json.dumps({**self._about, "runs": [*self._others(), self.run]}, indent=1) + "\n")

    @property
    def document(self) -> dict[str, Any]:
        """What this run measured, as one JSON document."""
        return {**self._about, **self.run}

    def _others(self) -> list[dict[str, Any]]:
        """The other runs in the file, read anew each time: another process may be adding to it."""
        try:
            runs = json.loads(self.path.read_text(encoding="utf-8"))["runs"] if self.path.exists() else []
            return [run for run in runs if run["started"] != self.run["started"]]
        except (OSError, ValueError, LookupError, TypeError):
            raise InputError("out", str(self.path), "a folder where that file is what bench wrote, or is not") from None
