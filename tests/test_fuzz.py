"""A short run of tests/helpers/fuzz.py, which can be run by hand with many more cases."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.parametrize(
    ("kind", "count", "names", "expected"),
    [
        ("configs", 120, {"config", "doctor", "export"}, ["export: completed"]),
        ("ggufs", 100, {"config", "doctor", "export"}, ["export: completed"]),
        (
            "results",
            20,
            {"curve", "questions", "longbench", "report", "resume"},
            ["report: completed", "curve: completed"],
        ),
        ("servers", 30, {"text", "logprobs"}, ["text: completed", "logprobs: completed"]),
    ],
)
def test_corrupt_input_gives_a_result_or_an_error_of_one_line(kind, count, names, expected):
    command = [sys.executable, "-m", "tests.helpers.fuzz", kind, str(count), "7"]
    root = Path(__file__).parents[1]
    done = subprocess.run(command, check=False, capture_output=True, text=True, cwd=root)
    assert done.returncode == 0, done.stdout + done.stderr[-4000:]
    assert {line.split(":")[0] for line in done.stdout.splitlines()} >= names
    for line in expected:
        assert line in done.stdout, "every case was refused"
