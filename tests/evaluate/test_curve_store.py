from __future__ import annotations

import csv
import json
import subprocess
import sys
from pathlib import Path

import pytest

import ropewalk as rw
from ropewalk.evaluate.curve_store import CurveRow, CurveStore

HEADER = {"model": "m", "text": "t", "dtype": "float32", "text_sha256": "0", "model_digest": "sha256:0"}
JUNK = [None, True, -1, 1.5, 10**400, float("nan"), "", "a", [], {}, [1], {"a": 1}]
# In these fields, these values are right.
VALID = {
    "scaling": ["", "a"],
    "chunk": [None],
    "policy": [None, "", "a"],
    "ppl": [1.5],
    "ppl_last": [1.5],
    "nll": [-1, 1.5, float("nan")],
    "seconds": [-1, 1.5, float("nan")],
    "longppl": [None, 1.5],
    "key_tokens": [None],
    "key_tokens_digest": [None, "", "a"],
    "evaluator": [None, "", "a"],
}


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
        longppl=None,
        key_tokens=None,
        key_tokens_digest=None,
        evaluator=None,
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


@pytest.mark.parametrize("field", [name for name in HEADER if name != "model"])
def test_the_folder_of_another_run_is_refused_and_the_difference_named(tmp_path, field):
    CurveStore(tmp_path, HEADER).add(make_row())
    with pytest.raises(rw.InputError, match=f"another run: {field}"):
        CurveStore(tmp_path, {**HEADER, field: "other"})


def test_the_same_model_may_have_another_name(tmp_path):
    CurveStore(tmp_path, HEADER).add(make_row())
    assert len(CurveStore(tmp_path, {**HEADER, "model": "./m"}).rows) == 1


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"[]",
        b'{"rows": [{"length": 3}]}',
        b"null",
        b'{"rows": 3}',
        b"\xff",
        b"[" * 100_000,
        b'"\\ud800"',
        b"\x00",
    ],
)
def test_a_damaged_file_is_refused(tmp_path, content):
    (tmp_path / "curve.json").write_bytes(content)
    with pytest.raises(rw.InputError, match=r"^[^\n]*cannot be read[^\n]*$"):
        CurveStore(tmp_path, HEADER)


def test_a_folder_in_place_of_the_file_is_refused(tmp_path):
    (tmp_path / "curve.json").mkdir()
    with pytest.raises(rw.InputError, match="cannot be read"):
        CurveStore(tmp_path, HEADER)


@pytest.mark.parametrize("field", list(CurveRow.__annotations__))
def test_a_field_of_the_wrong_type_is_refused_and_named(tmp_path, field):
    store = CurveStore(tmp_path, HEADER)
    for value in JUNK:
        if repr(value) in map(repr, VALID.get(field, [])):
            continue
        store.json_path.write_text(json.dumps({**HEADER, "rows": [{**make_row(), field: value}]}))
        with pytest.raises(rw.InputError, match=rf"cannot be read.*{field} is"):
            CurveStore(tmp_path, HEADER)


@pytest.mark.parametrize("junk", [3, [3], [{}], [{"scaling": "none", "tokens": 64, "losses": [[]]}]])
def test_damaged_losses_on_short_text_are_refused(tmp_path, junk):
    store = CurveStore(tmp_path, HEADER)
    store.json_path.write_text(json.dumps({**HEADER, "rows": [], "short_text": junk}))
    with pytest.raises(rw.InputError, match=r"^[^\n]*cannot be read[^\n]*$"):
        CurveStore(tmp_path, HEADER)


def test_losses_on_short_text_are_read_back(tmp_path):
    store = CurveStore(tmp_path, HEADER)
    store.add_short_losses("none", 64, [1.0, 2.5])
    assert CurveStore(tmp_path, HEADER).short_losses == {("none", 64): [1.0, 2.5]}


def test_a_long_difference_is_cut_off(tmp_path):
    store = CurveStore(tmp_path, {**HEADER, "text": "9" * 5000})
    store.add(make_row())
    with pytest.raises(rw.InputError, match="another run: text '999") as refused:
        CurveStore(tmp_path, HEADER)
    assert len(str(refused.value)) < 600


def test_a_file_with_a_byte_order_mark_is_read(tmp_path):
    store = CurveStore(tmp_path, HEADER)
    store.add(make_row())
    store.json_path.write_text(store.json_path.read_text(), encoding="utf-8-sig")
    assert CurveStore(tmp_path, HEADER).rows == store.rows


def test_a_second_writer_is_refused_and_the_next_one_has_all_rows(tmp_path):
    first, second = CurveStore(tmp_path, HEADER), CurveStore(tmp_path, HEADER)
    with first.locked():
        first.add(make_row(64))
        with pytest.raises(rw.InputError, match="to which another process writes"), second.locked():
            pass
    with second.locked():  # the rows that the first has stored meanwhile are not lost
        second.add(make_row(128))
    assert {key.length for key in CurveStore(tmp_path, HEADER).rows} == {64, 128}


_APPEND_ROWS = """
import sys, time
from ropewalk.errors import InputError
from ropewalk.evaluate.curve_store import CurveStore
from tests.evaluate.test_curve_store import HEADER, make_row
first = int(sys.argv[2])
store = CurveStore(sys.argv[1], HEADER)
for length in range(first, first + 20):
    while True:
        try:
            with store.locked():
                store.add(make_row(length))
            break
        except InputError:
            time.sleep(0.002)
"""


def test_processes_that_write_to_one_folder_lose_no_row(tmp_path):
    root = Path(__file__).parents[2]
    processes = [
        subprocess.Popen([sys.executable, "-c", _APPEND_ROWS, tmp_path, str(first)], cwd=root)
        for first in (100, 200, 300)
    ]
    assert [process.wait() for process in processes] == [0, 0, 0]
    lengths = {key.length for key in CurveStore(tmp_path, HEADER).rows}
    assert lengths == {first + index for first in (100, 200, 300) for index in range(20)}
    assert len((tmp_path / "curve.csv").read_text().splitlines()) == 61
    names = {path.name for path in tmp_path.iterdir()}
    assert names - {".curve.json.lock"} == {"curve.csv", "curve.json"}, "no temporary file is left"


def test_a_folder_that_cannot_be_written_is_refused(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(rw.InputError, match="a folder that can be written"):
        CurveStore(tmp_path / "file" / "under", HEADER)
