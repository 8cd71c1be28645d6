from __future__ import annotations

import csv
import json

import pytest

import ropewalk as rw
from ropewalk.evaluate.curve_store import CurveRow, CurveStore

HEADER = {"model": "m", "text": "t", "dtype": "float32", "text_sha256": "0"}


def make_row(length=64):
    return CurveRow(
        scaling="none",
        chunk=None,
        policy=None,
        length=length,
        ppl=3.0,
        ppl_last=3.0,
        nll=1.0,
        tokens=length - 1,
        seconds=0.1,
    )


def test_a_row_is_on_disk_as_soon_as_it_is_added_and_is_read_back(tmp_path):
    store = CurveStore(tmp_path / "new" / "folder", HEADER)
    for number, length in enumerate((64, 128), start=1):
        store.add(make_row(length))
        assert len(json.loads(store.json_path.read_text())["rows"]) == number
        with open(store.folder / "curve.csv", newline="") as file:
            assert [int(line["length"]) for line in csv.DictReader(file)] == [64, 128][:number]
    assert CurveStore(store.folder, HEADER).rows == store.rows
    assert sorted(path.name for path in store.folder.iterdir()) == [
        "curve.csv",
        "curve.json",
    ]  # no temporary file is left


@pytest.mark.parametrize("field", list(HEADER))
def test_the_folder_of_another_run_is_refused_and_the_difference_named(tmp_path, field):
    CurveStore(tmp_path, HEADER).add(make_row())
    with pytest.raises(rw.InputError, match=f"another run: {field}"):
        CurveStore(tmp_path, {**HEADER, field: "other"})


@pytest.mark.parametrize("content", ["", "{", "[]", '{"rows": [{"length": 3}]}', "null", '{"rows": 3}'])
def test_a_damaged_file_is_refused(tmp_path, content):
    (tmp_path / "curve.json").write_text(content)
    with pytest.raises(rw.InputError, match="cannot be read"):
        CurveStore(tmp_path, HEADER)


def test_a_folder_that_cannot_be_written_is_refused(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(rw.InputError, match="a folder that can be written"):
        CurveStore(tmp_path / "file" / "under", HEADER)
