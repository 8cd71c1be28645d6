"""Results files of the benchmarks: results/NAME.json with the command, the machine and the versions."""

from __future__ import annotations

import json
import os
import platform
import sys
import time
from pathlib import Path
from typing import Any

RESULTS_FOLDER = Path(__file__).parent / "results"
_FRONT_MATTER = 200_000  # characters of a book to skip
_CHARACTERS_PER_TOKEN = 8  # enough: English has about 4


def save_result(name: str, document: dict[str, Any]) -> None:
    """Write results/NAME.json: the document, and the command, date, machine and versions that produced it."""
    import numpy
    import torch
    import transformers

    import ropewalk
    from benchmarks.speed.environment import cpu_model

    script = Path(sys.argv[0]).stem
    origin = {
        "command": " ".join(["python", "-m", f"benchmarks.{script}", *sys.argv[1:]]),
        "date": time.strftime("%Y-%m-%d"),
        "machine": {"cpu": cpu_model(), "cores": os.cpu_count(), "threads": torch.get_num_threads()},
        "versions": {
            "python": platform.python_version(),
            "ropewalk": ropewalk.__version__,
            "torch": torch.__version__,
            "transformers": transformers.__version__,
            "numpy": numpy.__version__,
        },
    }
    path = RESULTS_FOLDER / f"{name}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({**origin, **document}, indent=1) + "\n", encoding="utf-8")
    print(f"saved to {path}")


def load_result(name: str) -> dict[str, Any]:
    """Return the document of an earlier run, or an empty one."""
    path = RESULTS_FOLDER / f"{name}.json"
    document: dict[str, Any] = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    return document


def write_held_out(book: Path, target: int, path: Path) -> None:
    """Write a part of a book, after its front matter, that has at least `target` tokens."""
    text = book.read_text(encoding="utf-8")[_FRONT_MATTER:]
    path.write_text(text[: _CHARACTERS_PER_TOKEN * target], encoding="utf-8")


def read_training_log(folder: Path) -> list[dict[str, Any]]:
    """Return the losses of each step that the method `gradient` has written to a folder."""
    return [json.loads(line) for line in (folder / "log.jsonl").read_text(encoding="utf-8").splitlines()]
