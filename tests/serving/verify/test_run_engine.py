"""Engines in a subprocess: where their Python is, how failures are reported, and wrong calls of the command."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from ropewalk import InputError
from ropewalk.cli import main
from ropewalk.errors import MissingPackageError
from ropewalk.serving.engines import find_engine
from ropewalk.serving.verify import create_environments
from ropewalk.serving.verify import run_engine as run_engine_module
from ropewalk.serving.verify.environments import find_python
from ropewalk.serving.verify.run_engine import find_runner, run_engine

JOB = {"path": "/nowhere", "length": 64, "prompts": [[1]], "top": 4, "positions": [0]}


def run_job(engine):
    return run_engine(find_engine(engine), sys.executable, JOB, lambda _: None)


def test_python_is_found_in_the_environment_of_the_engine(monkeypatch, tmp_path):
    monkeypatch.setenv("ROPEWALK_ENGINES", str(tmp_path))
    assert find_python(find_engine("transformers")) == sys.executable
    with pytest.raises(MissingPackageError, match=r"ropewalk verify --engine vllm needs .*make engines"):
        find_python(find_engine("vllm"))
    installed = tmp_path / "vllm" / "bin" / "python"
    installed.parent.mkdir(parents=True)
    installed.symlink_to(sys.executable)
    assert find_python(find_engine("vllm")) == str(installed)
    assert find_python(find_engine("vllm"), sys.executable) == sys.executable
    with pytest.raises(InputError, match="python"):
        find_python(find_engine("vllm"), str(tmp_path))


def test_environment_of_the_current_folder_is_never_used(monkeypatch, tmp_path):
    planted = tmp_path / ".engines" / "vllm" / "bin" / "python"
    planted.parent.mkdir(parents=True)
    planted.symlink_to(sys.executable)
    monkeypatch.delenv("ROPEWALK_ENGINES", raising=False)
    monkeypatch.chdir(tmp_path)
    try:
        found = Path(find_python(find_engine("vllm")))  # this checkout may have the engine
    except MissingPackageError:
        return
    assert tmp_path not in found.parents


def test_environments_are_created_without_a_warning():
    module = "ropewalk.serving.verify.create_environments"
    needs_none = "ollama"
    subprocess.run([sys.executable, "-W", "error::RuntimeWarning", "-m", module, needs_none], check=True)


def test_failed_download_has_its_own_exit_status(monkeypatch, tmp_path, capsys):
    def create_with_failing_pip(folder, **options):
        (folder / "bin").mkdir(parents=True)
        (folder / "bin" / "python").symlink_to("/bin/false")

    monkeypatch.setenv("ROPEWALK_ENGINES", str(tmp_path))
    monkeypatch.setattr(create_environments.venv, "create", create_with_failing_pip)
    with pytest.raises(SystemExit) as exit_info:
        create_environments.main(["llama.cpp"])
    assert exit_info.value.code == os.EX_UNAVAILABLE
    assert "pip failed with status 1" in capsys.readouterr().err
    assert not (tmp_path / "llama.cpp" / "requirements").exists()  # the next call tries again


def test_error_of_the_engine_is_reported():
    with pytest.raises(RuntimeError, match=r"transformers failed: .*nowhere"):
        run_job("transformers")


def test_python_without_the_engine_is_reported():
    with pytest.raises(RuntimeError, match="ModuleNotFoundError: No module named 'xllamacpp'"):
        run_job("llama.cpp")


def test_crash_is_reported_with_the_last_error_of_the_log(monkeypatch, tmp_path):
    (tmp_path / "runners").mkdir()
    (tmp_path / "runners" / "main.py").write_text(
        "import os, sys\nprint('fatal error: out of blocks', file=sys.stderr, flush=True)\n"
        "print('core dumped', file=sys.stderr, flush=True)\nos._exit(134)\n"
    )
    monkeypatch.setattr(run_engine_module, "__file__", str(tmp_path / "run_engine.py"))
    with pytest.raises(RuntimeError, match=r"transformers failed: fatal error: out of blocks$"):
        run_job("transformers")


def test_engine_without_a_runner_is_refused():
    with pytest.raises(InputError, match="--url"):
        find_runner(find_engine("ollama"))


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["--engine", "vlm"], "engine"),
        (["--engine", "ollama"], "--url"),
        (["--engine", "transformers", "--length", "20"], "length"),
        (["--engine", "transformers", "--served", "/nowhere"], "served"),
        (["--engine", "transformers", "--control-url", "http://127.0.0.1:9/v1"], "control_url"),
        (["--engine", "transformers", "--url", "ftp://x", "--served", "x"], "url"),
        (["--engine", "transformers", "--python", "/nowhere"], "python"),
    ],
)
def test_wrong_calls_print_one_line_that_names_the_option(small_model, capsys, arguments, named):
    with pytest.raises(SystemExit) as exit_info:
        main(["verify", small_model, "--scaling", "yarn:factor=4", *arguments])
    assert exit_info.value.code == 2
    captured = capsys.readouterr()
    assert named in captured.err
    assert captured.err.count("\n") == 1
    assert not captured.out
