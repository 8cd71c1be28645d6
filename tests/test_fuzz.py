"""A part of what `tests/fuzz.py` does; 10,000 configurations and 2,000 GGUF files when it is called by hand."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.parametrize(("what", "count"), [("configs", 600), ("ggufs", 300)])
def test_damage_gives_a_verdict_or_one_clear_line(what, count):
    script = Path(__file__).parent / "helpers" / "fuzz.py"
    done = subprocess.run([sys.executable, script, what, str(count), "7"], check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr[-4000:]
    counts = {line.split(":")[0] for line in done.stdout.splitlines()}
    assert {"config", "doctor", "export"} <= counts
    assert "export: verdict" in done.stdout, "not everything is refused"
