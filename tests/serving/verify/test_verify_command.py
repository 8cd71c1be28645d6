"""`ropewalk verify` with transformers, once in a subprocess."""

from __future__ import annotations

import json

import pytest
from tests.helpers.planted_faults import transformers_in_process

from ropewalk.cli import main
from ropewalk.serving.export import export_model

OPTIONS = ["--scaling", "yarn:factor=4", "--engine", "transformers", "--length", "256"]


def run_command(capsys, *arguments):
    with pytest.raises(SystemExit) as exit_info:
        main(["verify", *arguments])
    return exit_info.value.code, capsys.readouterr()


def test_json_result_has_the_documented_fields(small_model, capsys):
    status, captured = run_command(capsys, small_model, *OPTIONS, "--json")
    result = json.loads(captured.out)
    assert status == 0
    assert result["verdict"] == "pass"
    assert result["compared"] == "tables and log-probabilities"
    assert result["through"] == ""
    assert result["length"] == 256
    assert len(result["behaviour"]["depths"]) == len(result["behaviour"]["differences"]) == 24
    assert result["tables"]["ratio"] < 3
    assert "prompts" in captured.err


def test_served_config_with_another_factor_fails(small_model, tmp_path, capsys):
    export = export_model(small_model, "yarn:factor=2", "transformers", tmp_path / "out", 256)
    with transformers_in_process():  # a subprocess would import transformers twice
        status, captured = run_command(capsys, small_model, *OPTIONS, "--served", f"{export.path}/config.json")
    assert status == 1
    assert "fail" in captured.out
    assert "ignored the scaling" in captured.out
