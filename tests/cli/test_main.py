"""What all commands share: exit statuses, one-line errors, and a fast start."""

from __future__ import annotations

import subprocess
import sys

import pytest

from ropewalk.cli import _insert_default_values
from ropewalk.errors import MissingPackageError


def test_light_commands_do_not_import_heavy_packages(tiny_folder):
    code = (
        "import sys; from ropewalk.cli import run; import ropewalk;"
        f"status = run(['frequencies', {str(tiny_folder)!r}, '--scaling', 'yarn:factor=4', '--json']);"
        f"status += run(['plan', {str(tiny_folder)!r}, '--target', '1k', '--json']) + run(['methods', '--json']);"
        "heavy = {'torch', 'transformers', 'matplotlib', 'gguf'} & set(sys.modules);"
        "sys.exit(f'imported: {heavy}' if heavy else status)"
    )
    process = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert process.returncode == 0, process.stderr


def test_the_value_of_ray_may_be_omitted():
    assert _insert_default_values(["eval", "m", "--ray"]) == ["eval", "m", "--ray", "auto"]
    assert _insert_default_values(["eval", "--ray", "--jobs", "2"]) == ["eval", "--ray", "auto", "--jobs", "2"]
    assert _insert_default_values(["eval", "--ray", "1.2.3.4:5", "m"]) == ["eval", "--ray", "1.2.3.4:5", "m"]


@pytest.mark.parametrize(
    ("error", "status", "message"),
    [
        (
            MissingPackageError("ropewalk methods", "lm-eval", "pip install 'ropewalk[eval]'"),
            2,
            "ropewalk methods needs the package lm-eval: pip install 'ropewalk[eval]'",
        ),
        (
            ModuleNotFoundError("No module named 'torch'", name="torch"),
            2,
            "ropewalk methods needs the package torch: pip install 'ropewalk[hf]'",
        ),
        (RuntimeError("out of\nmemory"), 1, "failed: out of memory"),
        (MemoryError(), 1, "failed: MemoryError"),
        (KeyboardInterrupt(), 130, "interrupted"),
    ],
)
def test_errors_are_one_line_with_an_exit_status(run, monkeypatch, error, status, message):
    def fail(_):
        raise error

    monkeypatch.setattr("ropewalk.cli.methods.print_json", fail)
    actual_status, out, err = run("methods", "--json")
    assert (actual_status, out, err.strip()) == (status, "", f"ropewalk: {message}")


def test_an_unknown_missing_module_is_a_defect_and_not_hidden(run, monkeypatch):
    def fail(_):
        raise ModuleNotFoundError("No module named 'ropewalk.gone'", name="ropewalk.gone")

    monkeypatch.setattr("ropewalk.cli.methods.print_json", fail)
    with pytest.raises(ModuleNotFoundError):
        run("methods", "--json")
