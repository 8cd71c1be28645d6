"""The command, on transformers in a process of its own."""

from __future__ import annotations

import json

import pytest

from ropewalk.cli import main
from ropewalk.serving.export import export_model

CALL = ["--scaling", "yarn:factor=4", "--engine", "transformers", "--length", "256"]


def called(capsys, *arguments):
    with pytest.raises(SystemExit) as exit_:
        main(["verify", *arguments])
    return exit_.value.code, capsys.readouterr()


def test_json(small, capsys):
    status, said = called(capsys, small, *CALL, "--json")
    found = json.loads(said.out)
    assert status == 0
    assert found["verdict"] == "pass"
    assert found["compared"] == "tables and log-probabilities"
    assert found["through"] == ""
    assert found["length"] == 256
    assert len(found["behaviour"]["depths"]) == len(found["behaviour"]["differences"]) == 24
    assert found["tables"]["ratio"] < 3
    assert "prompts" in said.err


def test_a_configuration_of_your_own(small, tmp_path, capsys):
    made = export_model(small, "yarn:factor=2", "transformers", tmp_path / "out", 256)
    status, said = called(capsys, small, *CALL, "--served", f"{made.path}/config.json")
    assert status == 1
    assert "fail" in said.out
    assert "ignored the scaling" in said.out
