from __future__ import annotations

import pytest

from ropewalk.cli import run as run_command


@pytest.fixture(scope="session")
def text_file(tmp_path_factory):
    """A text of 300 words that the tokenizer of the tiny model knows."""
    path = tmp_path_factory.mktemp("text") / "words.txt"
    path.write_text(" ".join(f"w{(i * i) % 97}" for i in range(300)))
    return path


@pytest.fixture
def run(capfd):
    """Run a command; returns (exit status, standard output, standard error)."""

    def run_captured(*argv):
        capfd.readouterr()
        status = run_command([str(argument) for argument in argv])
        out, err = capfd.readouterr()
        return status, out, err

    return run_captured
