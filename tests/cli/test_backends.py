from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

from ropewalk.ops.backends import BACKENDS, backend_for, use_backend


@pytest.fixture
def restore_backend():
    yield
    use_backend()


def test_json_lists_every_backend_and_its_devices(run):
    status, out, _ = run("backends", "--json")
    rows = {row["name"]: row for row in json.loads(out)}
    assert status == 0
    assert set(rows) == set(BACKENDS)
    assert "cpu" in rows[backend_for("cpu").name]["serves"]
    assert rows["c++"]["variant"].startswith("c++ (")
    assert "other devices" in rows["reference"]["serves"]


@pytest.mark.parametrize("name", ["reference", "REFERENCE"])
def test_a_selected_backend_is_used_on_all_devices(run, restore_backend, name):
    use_backend(name)
    _, out, _ = run("backends")
    assert "reference  used on cpu, cuda, other devices" in out
    assert "available, not used" in out


def test_an_unknown_backend_in_the_environment_is_an_input_error():
    # A new process, because the environment is read at import.
    command = [sys.executable, "-c", "from ropewalk.cli import main; main()", "backends"]
    environment = os.environ | {"ROPEWALK_ROTATION": "cuda"}
    process = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert process.returncode == 2
    assert process.stderr == "ropewalk: error: ROPEWALK_ROTATION: got 'cuda'; expected reference, c++\n"
