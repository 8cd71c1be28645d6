from __future__ import annotations

import pytest

from ropewalk.cli import _run


@pytest.fixture(scope="session")
def tiny_folder(tiny, tmp_path_factory):
    """A tiny random model with a tokenizer of words, saved as a user has one."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = {f"w{i}": i for i in range(97)}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="w0"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    folder = tmp_path_factory.mktemp("tiny")
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="w0").save_pretrained(folder)
    tiny.save_pretrained(folder)
    return folder


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
        status = _run([str(argument) for argument in arguments])
        out, err = capfd.readouterr()
        return status, out, err

    return _call
