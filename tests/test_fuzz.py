"""A short run of tests/helpers/fuzz.py, which can be run by hand with many more cases."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

# Each of these must complete at least one case; otherwise it refused them all.
MUST_COMPLETE = [
    "configs export",
    "ggufs export",
    "results report",
    "results curve",
    "servers text",
    "servers logprobs",
]
# Each of these must run.
MUST_RUN = {
    "configs config", "configs doctor", "ggufs config", "ggufs doctor",
    "results questions", "results longbench", "results resume",
}  # fmt: skip


def test_corrupt_input_gives_a_result_or_an_error_of_one_line():
    counts = ["configs=120", "ggufs=100", "results=20", "servers=30"]
    command = [sys.executable, "-m", "tests.helpers.fuzz", *counts, "--seed", "7"]
    root = Path(__file__).parents[1]
    done = subprocess.run(command, check=False, capture_output=True, text=True, cwd=root)
    assert done.returncode == 0, done.stdout + done.stderr[-4000:]
    assert {line.split(":")[0] for line in done.stdout.splitlines()} >= MUST_RUN
    for name in MUST_COMPLETE:
        assert f"{name}: completed" in done.stdout, f"every case of {name} was refused"
