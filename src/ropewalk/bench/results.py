"""The file of a device and a day: what each bench measured, whole after every case."""

from __future__ import annotations

import json
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch

from ropewalk.bench.device import device_name, slug, versions
from ropewalk.errors import InputError
from ropewalk.files import writable_folder, write_whole

_PACKAGES = ("ropewalk", "torch", "transformers", "numpy", "triton")


class Results:
    """DEVICE-DATE.json in a folder, and in it the part of one bench; what other benches kept there stays.

    Attributes:
        path: of the file.
        part: what this bench measured: `command`, `versions`, what it is told of itself, `rows`.
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
        self._about = {"device": device_name(device), "date": time.strftime("%Y-%m-%d")}
        self.path = writable_folder(folder) / f"{slug(self._about['device'])}-{self._about['date']}.json"
        self._bench = bench
        self.part: dict[str, Any] = {
            "command": command,
            "versions": versions((*_PACKAGES, *packages)),
            **about,
            "rows": [],
        }
        self._kept()

    def add(self, row: dict[str, Any]) -> None:
        """Keep one more case."""
        self.part["rows"].append(row)
        write_whole(self.path, json.dumps({**self._kept(), **self.document}, indent=1) + "\n")

    @property
    def document(self) -> dict[str, Any]:
        """What this bench measured, as one JSON document."""
        return {**self._about, self._bench: self.part}

    def _kept(self) -> dict[str, Any]:
        try:
            found = json.loads(self.path.read_text(encoding="utf-8")) if self.path.exists() else {}
        except (OSError, ValueError):
            found = None
        if not isinstance(found, dict):
            raise InputError("out", str(self.path), "a folder where that file is what bench wrote, or is not")
        return found
