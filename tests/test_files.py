"""Files that are replaced as a whole, and JSON from outside."""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor

import pytest

from ropewalk import InputError
from ropewalk.files import ensure_writable_folder, parse_json, replace_file_atomically, write_text_atomically


def test_writers_of_one_file_do_not_disturb_each_other(tmp_path):
    path = tmp_path / "file"
    contents = [str(index) * 10_000 for index in range(8)]

    def write(content):
        for _ in range(30):
            write_text_atomically(path, content)
            assert path.read_text() in contents

    with ThreadPoolExecutor(len(contents)) as pool:
        list(pool.map(write, contents))
    assert [entry.name for entry in tmp_path.iterdir()] == ["file"]


@pytest.mark.parametrize("error", [KeyboardInterrupt, OSError, ValueError])
def test_an_error_while_writing_leaves_the_file_as_it_was(tmp_path, error):
    path = tmp_path / "file"
    write_text_atomically(path, "before")

    def write_and_fail():
        with replace_file_atomically(path) as file:
            file.write("half")
            raise error

    with pytest.raises(error):
        write_and_fail()
    assert path.read_text() == "before"
    assert [entry.name for entry in tmp_path.iterdir()] == ["file"]


def test_a_new_file_has_the_usual_permissions(tmp_path):
    mask = os.umask(0o022)
    try:
        write_text_atomically(tmp_path / "file", "")
    finally:
        os.umask(mask)
    assert (tmp_path / "file").stat().st_mode & 0o777 == 0o644


def test_an_empty_folder_name_is_refused(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match="out: got ''; expected the path of a folder"):
        ensure_writable_folder("")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("data", [b"\xef\xbb\xbf[1]", "\ufeff[1]", b" [1]\r\n"])
def test_json_is_parsed_with_and_without_a_byte_order_mark(data):
    assert parse_json(data) == [1]


@pytest.mark.parametrize("data", [b"", b"[", b"\xff", b"\xff\xfe[\x001\x00]\x00", "[" * 100_000, "9" * 5000])
def test_what_is_not_json_is_a_value_error(data):
    with pytest.raises(ValueError):  # noqa: PT011 (the text is that of the parser)
        parse_json(data)


@pytest.mark.parametrize("text", [r'"\ud800"', r'{"\udfff": 1}', r'["\uD83D x"]'])
def test_lone_surrogates_are_refused_unless_they_are_allowed(text):
    with pytest.raises(ValueError, match="lone surrogate"):
        parse_json(text)
    assert parse_json(text, allow_surrogates=True)
    assert parse_json(r'"\ud83d\ude00"') == "\U0001f600"
