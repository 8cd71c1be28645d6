"""`ropewalk backends`."""

import json
import os
import subprocess
import sys

import pytest

from ropewalk.ops import BACKENDS, backend_for


def asked(*arguments, **environment):
    """In a process of its own, since the choice is made once."""
    command = [sys.executable, "-c", "from ropewalk.cli import main; main()", "backends", *arguments]
    return subprocess.run(command, env=os.environ | environment, capture_output=True, text=True, check=False)


def test_says_what_serves(run):
    status, out, _ = run("backends", "--json")
    rows = {row["name"]: row for row in json.loads(out)}
    assert status == 0
    assert set(rows) == set(BACKENDS)
    assert "cpu" in rows[backend_for("cpu").name]["serves"]
    assert rows["c++"]["variant"].startswith("c++ (")
    assert "other devices" in rows["reference"]["serves"]


@pytest.mark.parametrize("name", ["reference", "REFERENCE"])
def test_another_by_the_environment(name):
    shown = asked(ROPEWALK_ROTATION=name).stdout
    assert "reference  serves cpu, cuda, other devices" in shown
    assert "serves nothing" in shown


def test_one_that_is_none():
    done = asked(ROPEWALK_ROTATION="cuda")
    assert done.returncode == 2
    assert done.stderr == "ropewalk: error: ROPEWALK_ROTATION: got 'cuda'; expected reference, c++\n"
