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

import ropewalk as rw
from ropewalk import files
from ropewalk.evaluate.evaluation_store import EvaluationStore
from ropewalk.evaluate.executors.in_process import in_process_executor
from ropewalk.evaluate.worker import CellSummary, Worker

MODEL = {"model": "m", "digest": "sha256:0", "dtype": "float32"}
DESCRIPTION = {"task": "toy", "length": 8, "scaling": "none", "policy": None, "seed": 0}
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
        {**DESCRIPTION, **sample_result(0)},
        {**DESCRIPTION, **sample_result(1)},
        {**DESCRIPTION, "length": 16, **sample_result(0)},
    ]
    with open(tmp_path / "cells.csv", newline="", encoding="utf-8") as file:
        assert list(csv.DictReader(file)) == [
            {**DESCRIPTION, "length": "8", "policy": "", "seed": "0", "score": "found", "value": "0.6", "samples": "2"}
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
        store.begin("a typo", {}, {"never started": {"task": "nedle"}, "started": {"task": "needle"}})
        store.add("started", sample_result())
        store.begin("again", {}, {"other": {"task": "passkey"}})
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
