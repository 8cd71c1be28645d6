from __future__ import annotations

import sys
import types

import pytest

import ropewalk as rw
from ropewalk.errors import MissingPackageError
from ropewalk.evaluate.texts import read_text


def test_the_built_in_text_is_the_help_that_comes_with_python():
    text = read_text("pydoc")
    assert "assert" in text.content
    assert len(text.content) > 300_000
    assert text.digest == read_text("pydoc").digest


def test_a_file_is_read_and_the_files_of_a_folder_are_joined(tmp_path):
    (tmp_path / "b.txt").write_text("second", encoding="utf-8")
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "x.md").write_text("first 漢字", encoding="utf-8")
    assert read_text(str(tmp_path / "b.txt")).content == "second"
    assert read_text(str(tmp_path)).content == "first 漢字\n\nsecond"


def test_a_data_set_is_read_by_name_split_and_field(monkeypatch):
    calls = []

    def load_dataset(name, split, streaming):
        calls.append((name, split, streaming))
        return iter([{"body": "one", "id": 1}, {"body": "two", "id": 2}])

    monkeypatch.setitem(sys.modules, "datasets", types.SimpleNamespace(load_dataset=load_dataset))
    assert read_text("hf:owner/set:test:body").content == "one\n\ntwo"
    assert calls == [("owner/set", "test", True)]
    with pytest.raises(rw.InputError, match="one of its text fields: body, id"):
        read_text("hf:owner/set")


def test_a_text_that_cannot_be_read_is_refused(tmp_path):
    (tmp_path / "empty").write_text(" \n")
    (tmp_path / "binary").write_bytes(b"abc\xff\xfe")
    (tmp_path / "folder").mkdir()
    for name, message in [("empty", "is empty"), ("binary", "not UTF-8 at byte 3"), ("folder", "is empty")]:
        with pytest.raises(rw.InputError, match=message):
            read_text(str(tmp_path / name))
    with pytest.raises(rw.InputError, match="exists"):
        read_text(str(tmp_path / "missing"))
    with pytest.raises(rw.InputError, match="text: got ''; expected a file, a folder"):
        read_text("")  # not every file of the current folder


def test_only_the_beginning_of_a_large_data_set_is_read(monkeypatch):
    rows = ({"text": "x" * 2**20} for _ in iter(int, 1))  # endless
    monkeypatch.setitem(sys.modules, "datasets", types.SimpleNamespace(load_dataset=lambda *_, **__: rows))
    assert len(read_text("hf:owner/large").content) == 64 * 2**20 + 63 * len("\n\n")


def test_a_missing_package_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(MissingPackageError, match="needs the package datasets"):
        read_text("hf:owner/set")
