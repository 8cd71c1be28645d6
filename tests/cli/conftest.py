from __future__ import annotations

import pytest

from ropewalk.cli import run


@pytest.fixture(scope="session")
def words(tmp_path_factory):
    """A text of 300 of its words."""
    path = tmp_path_factory.mktemp("text") / "words.txt"
    path.write_text(" ".join(f"w{(i * i) % 97}" for i in range(300)))
    return path


@pytest.fixture
def run(capfd):
    """Run a command line; returns (status, standard output, standard error)."""

    def _call(*arguments):
        capfd.readouterr()
        status = run([str(argument) for argument in arguments])
        out, err = capfd.readouterr()
        return status, out, err

    return _call
