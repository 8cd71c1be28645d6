"""What every benchmark here does: name the machine and the versions, and keep the numbers with the command."""

from __future__ import annotations

import json
import os
import platform
import sys
import time
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results"


def keep(name: str, document: dict[str, Any]) -> None:
    """Write results/NAME.json: the numbers, the command, the machine, the versions."""
    import numpy
    import torch
    import transformers
    from benchmarks.speed.device import cpu_model

    import ropewalk

    about = {
        "command": " ".join(["python", *sys.argv]),
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
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / f"{name}.json").write_text(json.dumps({**about, **document}, indent=1) + "\n", encoding="utf-8")
    print(f"kept in {RESULTS / name}.json")


def kept(name: str) -> dict[str, Any]:
    """What an earlier run kept under that name; nothing when there was none."""
    path = RESULTS / f"{name}.json"
    found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    return found
