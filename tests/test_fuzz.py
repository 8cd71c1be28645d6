"""A short run of tests/helpers/fuzz.py, which can be run by hand with many more cases."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.parametrize(("kind", "count"), [("configs", 300), ("ggufs", 200)])
def test_corrupt_input_gives_a_result_or_an_error_of_one_line(kind, count):
    command = [sys.executable, "-m", "tests.helpers.fuzz", kind, str(count), "7"]
    root = Path(__file__).parents[1]
    done = subprocess.run(command, check=False, capture_output=True, text=True, cwd=root)
    assert done.returncode == 0, done.stdout + done.stderr[-4000:]
    counts = {line.split(":")[0] for line in done.stdout.splitlines()}
    assert {"config", "doctor", "export"} <= counts
    assert "export: completed" in done.stdout, "every export was refused"
