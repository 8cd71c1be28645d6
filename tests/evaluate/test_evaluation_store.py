from __future__ import annotations

import csv
import json
import multiprocessing
import os
import random
import shutil
import sqlite3
import subprocess
import sys
import time
from contextlib import suppress

import pytest
from tests.helpers import toy_task as toy
from tests.helpers.fake_results import describe_cell

import ropewalk as rw
from ropewalk import files
from ropewalk.evaluate.evaluation_store import EvaluationStore
from ropewalk.evaluate.executors.in_process import in_process_executor
from ropewalk.evaluate.worker import CellSummary, Worker

MODEL = {"model": "m", "digest": "sha256:0", "dtype": "float32"}
DESCRIPTION = describe_cell("toy", "none", 8, 2)
EXPORTED = {
    "task": "toy",
    "length": 8,
    "scaling": "none",
    "policy": None,
    "seed": 0,
    "chat": False,
}  # of DESCRIPTION
REQUIRED = [field for field in DESCRIPTION if field != "chat"]  # earlier versions did not store it
KILLS = 20


def sample_result(index=0, **changed):
    return {
        "index": index,
        "prompt": "ab",
        "tokens": 8,
        "answer": 'a "quoted",\nline — 数',
        "references": ["1", "2"],
        "scores": {"found": 0.1 + index},
        "about": {"depth": 0.5},
        "seconds": 0.25,
        **changed,
    }


def fill(folder):
    """Store a finished cell of two samples and an unfinished one of one sample."""
    with EvaluationStore(folder, MODEL) as store:
        store.begin("a command", {"python": "3"}, {"first": DESCRIPTION, "second": {**DESCRIPTION, "length": 16}})
        store.add("first", sample_result(0))
        store.add("first", sample_result(1))
        store.finish("first", {"found": 0.6})
        store.add("second", sample_result(0))
    return folder


def run_python(*lines):
    return subprocess.run([sys.executable, "-c", "\n".join(lines)], capture_output=True, text=True, check=False)


def test_stored_results_are_read_back(tmp_path):
    with EvaluationStore(fill(tmp_path)) as store:
        assert store.model == MODEL
        first, second = store.cells()
        assert (first.key, first.description, first.summary) == ("first", DESCRIPTION, {"found": 0.6})
        assert first.sample_results == [sample_result(0), sample_result(1)]
        assert (second.summary, second.sample_results) == (None, [sample_result(0)])
        assert store.sample_results("first") == {0: sample_result(0), 1: sample_result(1)}
        assert store.finished_keys() == {"first"}
        assert [(run["command"], run["versions"]) for run in store.runs()] == [("a command", {"python": "3"})]


def test_cells_of_versions_without_chat_templates_are_plain_text(tmp_path):
    change_json("cells", "described", chat="del")(fill(tmp_path) / "results.sqlite")
    with EvaluationStore(tmp_path) as store:
        assert [cell.description for cell in store.cells()] == [DESCRIPTION, {**DESCRIPTION, "length": 16}]


def test_a_sample_that_is_added_twice_is_stored_once(tmp_path):
    with EvaluationStore(fill(tmp_path), MODEL) as store:
        store.add("first", sample_result(1, answer="again"))
        answers = [result["answer"] for result in store.sample_results("first").values()]
        assert answers == [sample_result()["answer"], "again"]


def test_a_second_run_keeps_the_samples_and_sets_the_order(tmp_path):
    with EvaluationStore(fill(tmp_path), MODEL) as store:
        store.begin("again", {}, {"second": {**DESCRIPTION, "length": 16}, "third": DESCRIPTION, "first": DESCRIPTION})
        assert [(cell.key, len(cell.sample_results)) for cell in store.cells()] == [
            ("second", 1),
            ("third", 0),
            ("first", 2),
        ]
        assert [run["command"] for run in store.runs()] == ["a command", "again"]


def test_export_writes_every_sample_and_every_score(tmp_path):
    with EvaluationStore(fill(tmp_path)) as store:
        store.export()
    lines = (tmp_path / "samples.jsonl").read_text(encoding="utf-8").split("\n")
    assert [json.loads(line) for line in lines[:-1]] == [
        {**EXPORTED, **sample_result(0)},
        {**EXPORTED, **sample_result(1)},
        {**EXPORTED, "length": 16, **sample_result(0)},
    ]
    with open(tmp_path / "cells.csv", newline="", encoding="utf-8") as file:
        assert list(csv.DictReader(file)) == [
            {
                **EXPORTED,
                "length": "8",
                "policy": "",
                "seed": "0",
                "chat": "False",
                "score": "found",
                "value": "0.6",
                "samples": "2",
            }
        ]


def _replace_by_another_program(path):
    path.unlink()
    with sqlite3.connect(path) as database:
        database.execute("create table other (x)")


def _raise_format_version(path):
    with sqlite3.connect(path) as database:
        database.execute("pragma user_version = 99")


def _truncate(path):
    path.write_bytes(path.read_bytes()[:-4096])


def _overwrite_pages(path):
    content = bytearray(path.read_bytes())
    content[4096:] = os.urandom(len(content) - 4096)
    path.write_bytes(content)


DAMAGE = {
    "not a database": lambda path: path.write_bytes(b"no database at all\n" * 300),
    "last page missing": _truncate,
    "pages overwritten": _overwrite_pages,
    "half a header": lambda path: path.write_bytes(path.read_bytes()[:50]),
    "database of another program": _replace_by_another_program,
    "newer format": _raise_format_version,
}


@pytest.mark.parametrize("mode", ["read", "write"])
@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_or_foreign_file_is_refused_and_not_changed(tmp_path, damage, mode):
    path = fill(tmp_path) / "results.sqlite"
    DAMAGE[damage](path)
    before = path.read_bytes()
    with pytest.raises(rw.InputError, match=r"^out: got .*results\.sqlite.*; expected ") as refused:
        EvaluationStore(tmp_path, MODEL if mode == "write" else None)
    assert "\n" not in str(refused.value)
    assert path.read_bytes() == before
    shutil.rmtree(tmp_path)
    EvaluationStore(tmp_path, MODEL).close()  # works only if the lock was released


def change(table, column, value):
    """Return what writes a value into a column of all rows of a table."""

    def apply(path):
        with sqlite3.connect(path) as database:
            database.execute(f"update {table} set {column} = ?", [value])
        database.close()

    return apply


def change_json(table, column, /, **changes):
    """Return what changes fields of the JSON in a column of a table, or removes those whose new value is `del`."""

    def apply(path):
        with sqlite3.connect(path) as database:
            for (text,) in database.execute(f"select distinct {column} from {table}").fetchall():
                document = {**json.loads(text), **changes}
                document = {name: value for name, value in document.items() if value != "del"}
                database.execute(f"update {table} set {column} = ? where {column} = ?", [json.dumps(document), text])
        database.close()

    return apply


def run_sql(statement):
    def apply(path):
        with sqlite3.connect(path) as database:
            database.execute(statement)
        database.close()

    return apply


JSON_COLUMNS = [
    ("cells", "described"),
    ("cells", "summary"),
    ("samples", "refs"),
    ("samples", "scores"),
    ("runs", "versions"),
]
WRONG_VALUES = {
    **{
        f"{table}.{column} is {name}": change(table, column, value)
        for table, column in JSON_COLUMNS
        for name, value in [
            *[("a blob", b"\xff\x00"), ("text", "no JSON"), ("a list", "[[]]"), ("a number", 3), ("empty", "")],
            *[("deep", "[" * 50_000), ("a lone surrogate", '{"task": "\\ud800"}'), ("other types", '{"a": {}}')],
        ]
        if (table, column, name) not in {("samples", "scores", "other types"), ("samples", "about", "other types")}
    },
    **{f"no {field} in the description": change_json("cells", "described", **{field: "del"}) for field in REQUIRED},
    **{
        f"{field} of the description is an object": change_json("cells", "described", **{field: {"a": [1]}})
        for field in DESCRIPTION
        if field not in ("task_options", "scaling_options")
    },
    **{
        f"the length is {value}": change_json("cells", "described", length=value)
        for value in (0, -1, 10**30, 1.5, True)
    },
    **{f"{field} of a sample is a blob": change("samples", field, b"ab") for field in ("answer", "prompt", "seconds")},
    **{f"{field} of a sample is text": change("samples", field, "many") for field in ("tokens", "seconds")},
    "the number of a sample is text": run_sql("update samples set number = 'many' where number = 0"),
    "an answer is not UTF-8": run_sql("update samples set answer = cast(x'ff' as text)"),
    "a score is huge": change("samples", "scores", json.dumps({"found": 10**400})),
    **{f"the depth is {value}": change_json("samples", "about", depth=value) for value in (7, -1, "a", None, [1])},
    "the group is a list": change_json("samples", "about", group=["a"]),
    "a column is missing": run_sql("alter table samples drop column answer"),
    "another column is missing": run_sql("alter table cells drop column summary"),
    "the commands are missing": run_sql("alter table runs drop column command"),
    "a table is missing": run_sql("drop table samples"),
    "the model is missing": run_sql("delete from about"),
}


@pytest.mark.parametrize("damage", WRONG_VALUES)
def test_wrong_types_and_missing_columns_are_one_line(tmp_path, damage):
    path = fill(tmp_path) / "results.sqlite"
    WRONG_VALUES[damage](path)

    def read_everything():
        with EvaluationStore(tmp_path) as store:
            return store.cells(), store.runs(), store.finished_keys()

    with pytest.raises(rw.InputError, match=r"^out: got [^\n]*cannot be read \([^\n]*; expected [^\n]*$"):
        read_everything()


def test_flipped_bytes_give_results_or_one_line(tmp_path):
    path = fill(tmp_path) / "results.sqlite"
    content, dice = path.read_bytes(), random.Random(1)
    refused = 0
    for _ in range(200):
        damaged = bytearray(content)
        for _ in range(dice.randint(1, 20)):
            damaged[dice.randrange(len(damaged))] = dice.randrange(256)
        path.write_bytes(damaged)
        try:
            with EvaluationStore(tmp_path) as store:
                store.cells(), store.runs()
        except rw.InputError:
            refused += 1
    assert refused > 50


def test_credentials_that_an_earlier_version_stored_are_not_read_back(tmp_path):
    fill(tmp_path)
    url = "http://user:s3cret@127.0.0.1:8000/v1"
    change_json("about", "value", server=f"tiny at {url}")(tmp_path / "results.sqlite")
    change("runs", "command", f"ropewalk eval tiny --url {url}")(tmp_path / "results.sqlite")
    with EvaluationStore(tmp_path, {**MODEL, "server": "tiny at http://127.0.0.1:8000/v1"}) as store:
        store.begin(f"again {url}", {}, {})
        assert [run["command"] for run in store.runs()] == [
            "ropewalk eval tiny --url http://127.0.0.1:8000/v1",
            "again http://127.0.0.1:8000/v1",
        ]
        assert "s3cret" not in str(store.model)
    with pytest.raises(rw.InputError, match="of another run: server") as refused:
        EvaluationStore(tmp_path, {**MODEL, "server": "another"})
    assert "s3cret" not in str(refused.value)


@pytest.mark.parametrize("model", [None, MODEL])
def test_an_empty_folder_name_is_refused(tmp_path, monkeypatch, model):
    monkeypatch.chdir(fill(tmp_path))
    with pytest.raises(rw.InputError, match="got ''; expected the "):
        EvaluationStore("", model)


@pytest.mark.usefixtures("no_model")
def test_stored_samples_that_the_task_cannot_summarize_are_one_line(tmp_path, toy_model):
    evaluation = toy.make_evaluation(toy_model, tmp_path / "out")
    with evaluation.store:
        evaluation.run()
    path = tmp_path / "out" / "results.sqlite"
    change("samples", "scores", '{"half": [1, 2]}')(path)
    run_sql("update cells set summary = null")(path)
    again = toy.make_evaluation(toy_model, tmp_path / "out")
    with again.store, pytest.raises(rw.InputError, match=r"^[^\n]*stored samples of toy[^\n]*$"):
        again.run()


def test_reading_a_folder_without_results_is_refused(tmp_path):
    with pytest.raises(rw.InputError, match="folder of an evaluation"):
        EvaluationStore(tmp_path / "none")
    assert not (tmp_path / "none").exists()


@pytest.mark.parametrize("field", sorted({*MODEL} - {"model"}))
def test_the_folder_of_another_model_is_refused_and_the_difference_named(tmp_path, field):
    fill(tmp_path)
    with pytest.raises(rw.InputError, match=f"another run: {field}"):
        EvaluationStore(tmp_path, {**MODEL, field: "other"})


def test_the_same_model_may_have_another_name(tmp_path):
    fill(tmp_path)
    EvaluationStore(tmp_path, {**MODEL, "model": "./other"}).close()


def test_cells_without_samples_are_removed_by_the_next_run(tmp_path):
    with EvaluationStore(tmp_path, MODEL) as store:
        store.begin("a typo", {}, {"never started": DESCRIPTION, "started": DESCRIPTION})
        store.add("started", sample_result())
        store.begin("again", {}, {"other": DESCRIPTION})
        assert {cell.key for cell in store.cells()} == {"started", "other"}


def test_a_second_writer_is_refused_but_readers_are_not(tmp_path):
    imports = "from ropewalk.evaluate.evaluation_store import EvaluationStore"
    read = [imports, f"print(len(EvaluationStore({str(tmp_path)!r}).cells()))"]
    write = [imports, f"EvaluationStore({str(tmp_path)!r}, {MODEL!r})"]
    with EvaluationStore(fill(tmp_path), MODEL) as store:
        with pytest.raises(rw.InputError, match="to which another process writes"):
            EvaluationStore(tmp_path, MODEL)
        assert "InputError: out: got" in run_python(*write).stderr.splitlines()[-1]
        assert run_python(*read).stdout == "2\n"
        with EvaluationStore(tmp_path) as reader:
            store.add("second", sample_result(1))
            assert len(reader.sample_results("second")) == 2
    assert run_python(*write).returncode == 0


def test_the_folder_can_be_written_after_its_writer_was_killed(tmp_path):
    killed = run_python(
        "import os, signal",
        "from ropewalk.evaluate.evaluation_store import EvaluationStore",
        f"store = EvaluationStore({str(tmp_path)!r}, {MODEL!r})",
        f"store.begin('', {{}}, {{'first': {DESCRIPTION!r}}})",
        f"store.add('first', {sample_result()!r})",
        "store._database.execute('begin immediate')",
        "store._database.execute('delete from samples')",
        "os.kill(os.getpid(), signal.SIGKILL)",
    )
    assert killed.returncode == -9, killed.stderr
    with EvaluationStore(tmp_path, MODEL) as store:
        assert store.sample_results("first") == {0: sample_result()}


def test_a_store_whose_creation_was_killed_is_created_again(tmp_path):
    killed = run_python(
        "import os, signal",
        "from ropewalk.evaluate.evaluation_store import EvaluationStore, sqlite3",
        "def die(self, *_):",
        "    self._database.execute('pragma cache_spill = 1')",
        "    self._database.execute('pragma cache_size = 1')",
        "    self._database.execute('begin immediate')",
        "    for n in range(40):",
        "        self._database.execute(f'create table t{n} (x default \"' + 'y' * 3000 + '\")')",
        "    os.kill(os.getpid(), signal.SIGKILL)",
        "EvaluationStore._create = die",
        f"EvaluationStore({str(tmp_path)!r}, {MODEL!r})",
    )
    assert killed.returncode == -9, killed.stderr
    assert (tmp_path / "results.sqlite").stat().st_size > 0  # an incomplete database, and a journal to roll it back
    fill(tmp_path)
    with EvaluationStore(tmp_path) as store:
        assert len(store.cells()) == 2


def test_an_interrupt_within_a_transaction_rolls_it_back(tmp_path):
    class InterruptError(BaseException):
        pass

    def interrupt(store):
        with store._transaction():
            store._database.execute("delete from samples")
            raise InterruptError

    with EvaluationStore(fill(tmp_path), MODEL) as store:
        with pytest.raises(InterruptError):
            interrupt(store)
        assert len(store.sample_results("first")) == 2
        store.add("first", sample_result(2))
        assert len(store.sample_results("first")) == 3


def _run_and_report(pipe, model, out, log):
    """Compute what is missing, and report to the parent process whether each stored result is a summary."""
    evaluation = toy.make_evaluation(model, out, toy.ToyTask(log=log))
    executor = in_process_executor(Worker(str(model)))
    evaluation.run(executor, lambda cell, result: pipe.send(isinstance(result, CellSummary)))


def test_runs_killed_at_random_moments_end_with_the_results_of_an_undisturbed_run(
    tmp_path, toy_model, undisturbed_folder, undisturbed
):
    dice = random.Random(7)
    fork = multiprocessing.get_context("fork")  # starts much faster than spawn
    out, log = tmp_path / "out", tmp_path / "log"
    rows, kills = 0, 0
    with EvaluationStore(undisturbed_folder) as store:
        model = store.model
    while True:
        reader, writer = fork.Pipe(duplex=False)
        process = fork.Process(target=_run_and_report, args=(writer, toy_model, out, str(log)))
        process.start()
        writer.close()
        if kills == KILLS:
            process.join()
            assert process.exitcode == 0
            break
        reported = sum(not reader.recv() for _ in range(dice.choice([0, 1, 2, 3]) if rows < 40 else 0))
        time.sleep(dice.uniform(0, 0.03))
        process.kill()
        process.join()
        kills += 1
        if (out / "results.sqlite").exists():
            with EvaluationStore(out, model) as store:  # opening checks that the file is whole
                after = sum(len(cell.sample_results) for cell in store.cells())
            assert after >= rows + reported
            rows = after
    with EvaluationStore(out) as store:
        assert toy.stored_cells(store) == undisturbed
    total = sum(len(results) for *_, results in undisturbed)
    assert total <= len(toy.read_log(log)) <= total + KILLS  # a kill loses the sample in flight, no more
    for name in ("cells.csv", "samples.jsonl"):
        assert _without_seconds(out / name) == _without_seconds(undisturbed_folder / name)


def _without_seconds(path):
    if path.suffix == ".csv":
        return path.read_text()
    return [{**json.loads(line), "seconds": 0} for line in path.read_text().splitlines()]


def test_a_full_database_stops_the_run_with_one_line_and_no_result_is_lost(tmp_path, toy_model, undisturbed):
    evaluation = toy.make_evaluation(toy_model, tmp_path / "out")
    with evaluation.store as store:
        pages = store._database.execute("pragma page_count").fetchone()[0]
        store._database.execute(f"pragma max_page_count = {pages}")
        with pytest.raises(
            RuntimeError, match=r"^[^\n]*results\.sqlite cannot be written \(database or disk is full\)"
        ):
            evaluation.run()
        stored = sum(len(cell.sample_results) for cell in store.cells())
        assert 0 < stored < toy.CELLS * toy.SAMPLES
        assert len((tmp_path / "out" / "samples.jsonl").read_text().splitlines()) == stored
    again = toy.make_evaluation(toy_model, tmp_path / "out")
    with again.store as store:
        again.run()
        assert toy.stored_cells(store) == undisturbed


@pytest.fixture
def small_disk(tmp_path):
    """A disk of 128 KiB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=128k", "tmpfs", str(folder)]
    if shutil.which("mount") is None or subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("mounting a disk needs root")
    yield folder
    subprocess.run(["umount", "--lazy", str(folder)], check=True)


def test_a_full_disk_stops_the_run_with_one_line_and_no_result_is_lost(small_disk, toy_model, undisturbed):
    ballast = small_disk / "ballast"
    evaluation = toy.make_evaluation(toy_model, small_disk / "out")
    with open(ballast, "wb", buffering=0) as file, suppress(OSError):
        while file.write(bytes(512)):
            pass
    with evaluation.store, pytest.raises(RuntimeError, match=r"^[^\n]*results\.sqlite cannot be written \([^\n]*\)"):
        evaluation.run()
    with pytest.raises((OSError, RuntimeError, rw.InputError), match=r"^[^\n]*$"):
        toy.make_evaluation(toy_model, small_disk / "another")
    with pytest.raises(OSError, match="No space left"):
        files.write_text_atomically(small_disk / "large", "x" * 200_000)
    ballast.unlink()
    again = toy.make_evaluation(toy_model, small_disk / "out")
    with again.store as store:
        again.run()
        assert toy.stored_cells(store) == undisturbed
