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
SHOWN = {"task": "toy", "length": 8, "scaling": "none", "policy": None, "seed": 0}
KILLS = 20


def outcome(index=0, **changed):
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


def filled(folder):
    with EvaluationStore(folder, MODEL) as store:
        store.begin("a command", {"python": "3"}, {"first": SHOWN, "second": {**SHOWN, "length": 16}})
        store.add("first", outcome(0))
        store.add("first", outcome(1))
        store.finish("first", {"found": 0.6})
        store.add("second", outcome(0))
    return folder


def python(*lines):
    return subprocess.run([sys.executable, "-c", "\n".join(lines)], capture_output=True, text=True, check=False)


def test_what_was_kept_is_read_back(tmp_path):
    with EvaluationStore(filled(tmp_path)) as store:
        assert store.model == MODEL
        first, second = store.cells()
        assert (first.key, first.description, first.summary) == ("first", SHOWN, {"found": 0.6})
        assert first.sample_results == [outcome(0), outcome(1)]
        assert (second.summary, second.sample_results) == (None, [outcome(0)])
        assert store.sample_results("first") == {0: outcome(0), 1: outcome(1)}
        assert store.finished() == {"first"}
        assert [(run["command"], run["versions"]) for run in store.runs()] == [("a command", {"python": "3"})]


def test_a_sample_that_comes_twice_is_kept_once(tmp_path):
    with EvaluationStore(filled(tmp_path), MODEL) as store:
        store.add("first", outcome(1, answer="again"))
        assert [each["answer"] for each in store.sample_results("first").values()] == [outcome()["answer"], "again"]


def test_the_same_cells_again_lose_nothing_and_take_the_new_order(tmp_path):
    with EvaluationStore(filled(tmp_path), MODEL) as store:
        store.begin("again", {}, {"second": {**SHOWN, "length": 16}, "third": SHOWN, "first": SHOWN})
        assert [(cell.key, len(cell.sample_results)) for cell in store.cells()] == [
            ("second", 1),
            ("third", 0),
            ("first", 2),
        ]
        assert [run["command"] for run in store.runs()] == ["a command", "again"]


def test_the_exported_files_are_whole(tmp_path):
    with EvaluationStore(filled(tmp_path)) as store:
        store.export()
    lines = (tmp_path / "samples.jsonl").read_text(encoding="utf-8").split("\n")
    assert [json.loads(line) for line in lines[:-1]] == [
        {**SHOWN, **outcome(0)},
        {**SHOWN, **outcome(1)},
        {**SHOWN, "length": 16, **outcome(0)},
    ]
    with open(tmp_path / "cells.csv", newline="", encoding="utf-8") as file:
        assert list(csv.DictReader(file)) == [
            {**SHOWN, "length": "8", "policy": "", "seed": "0", "score": "found", "value": "0.6", "samples": "2"}
        ]


def _foreign(path):
    with sqlite3.connect(path) as database:
        database.execute("create table theirs (x)")


def _later(path):
    with sqlite3.connect(path) as database:
        database.execute("pragma user_version = 99")


def _cut(path):
    path.write_bytes(path.read_bytes()[:-4096])


def _scribbled(path):
    content = bytearray(path.read_bytes())
    content[4096:] = os.urandom(len(content) - 4096)
    path.write_bytes(content)


DAMAGE = {
    "garbage": lambda path: path.write_bytes(b"no database at all\n" * 300),
    "cut": _cut,
    "scribbled": _scribbled,
    "headless": lambda path: path.write_bytes(path.read_bytes()[:50]),
    "foreign": lambda path: (path.unlink(), _foreign(path)),
    "later": _later,
}


@pytest.mark.parametrize("mode", ["read", "write"])
@pytest.mark.parametrize("damage", DAMAGE)
def test_a_file_that_is_not_a_whole_store_is_refused_and_left_alone(tmp_path, damage, mode):
    path = filled(tmp_path) / "results.sqlite"
    DAMAGE[damage](path)
    before = path.read_bytes()
    with pytest.raises(rw.InputError, match=r"^out: got .*results\.sqlite.*; expected ") as refused:
        EvaluationStore(tmp_path, MODEL if mode == "write" else None)
    assert "\n" not in str(refused.value)
    assert path.read_bytes() == before
    shutil.rmtree(tmp_path)
    EvaluationStore(tmp_path, MODEL).close()  # the lock was given back


def test_a_folder_without_results_is_refused_to_a_reader(tmp_path):
    with pytest.raises(rw.InputError, match="folder of an evaluation"):
        EvaluationStore(tmp_path / "none")
    assert not (tmp_path / "none").exists()


@pytest.mark.parametrize("field", sorted({*MODEL} - {"model"}))
def test_the_folder_of_another_model_is_refused_by_the_field_that_differs(tmp_path, field):
    filled(tmp_path)
    with pytest.raises(rw.InputError, match=f"another run .{field}"):
        EvaluationStore(tmp_path, {**MODEL, field: "other"})


def test_a_model_may_go_by_another_name(tmp_path):
    filled(tmp_path)
    EvaluationStore(tmp_path, {**MODEL, "model": "./other"}).close()


def test_a_cell_that_never_began_goes_with_the_next_run(tmp_path):
    with EvaluationStore(tmp_path, MODEL) as store:
        store.begin("a typo", {}, {"never": {"task": "nedle"}, "begun": {"task": "needle"}})
        store.add("begun", {**dict.fromkeys(("prompt", "answer"), "x"), "index": 0, "tokens": 1, "references": [],
                            "scores": {}, "about": {}, "seconds": 0.1} | {})  # fmt: skip
        store.begin("again", {}, {"other": {"task": "passkey"}})
        assert {cell.key for cell in store.cells()} == {"begun", "other"}


def test_a_second_writer_is_refused_while_readers_read(tmp_path):
    read = f"from ropewalk.evaluate.evaluation_store import EvaluationStore; print(len(EvaluationStore({str(tmp_path)!r}).cells()))"
    write = (
        f"from ropewalk.evaluate.evaluation_store import EvaluationStore; EvaluationStore({str(tmp_path)!r}, {MODEL!r})"
    )
    with EvaluationStore(filled(tmp_path), MODEL) as store:
        with pytest.raises(rw.InputError, match="to which another process writes"):
            EvaluationStore(tmp_path, MODEL)
        assert "InputError: out: got" in python(write).stderr.splitlines()[-1]
        assert python(read).stdout == "2\n"
        with EvaluationStore(tmp_path) as reader:
            store.add("second", outcome(1))
            assert len(reader.sample_results("second")) == 2
    assert python(write).returncode == 0


def test_the_folder_is_free_after_its_writer_was_killed(tmp_path):
    killed = python(
        "import os, signal",
        "from ropewalk.evaluate.evaluation_store import EvaluationStore",
        f"store = EvaluationStore({str(tmp_path)!r}, {MODEL!r})",
        f"store.begin('', {{}}, {{'first': {SHOWN!r}}})",
        f"store.add('first', {outcome()!r})",
        "store._database.execute('begin immediate')",
        "store._database.execute('delete from samples')",
        "os.kill(os.getpid(), signal.SIGKILL)",
    )
    assert killed.returncode == -9, killed.stderr
    with EvaluationStore(tmp_path, MODEL) as store:
        assert store.sample_results("first") == {0: outcome()}


def test_a_store_whose_making_was_cut_off_is_made_again(tmp_path):
    killed = python(
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
    assert (tmp_path / "results.sqlite").stat().st_size > 0  # half a database, and a journal to undo it
    filled(tmp_path)
    with EvaluationStore(tmp_path) as store:
        assert len(store.cells()) == 2


def test_an_interrupt_amid_a_sample_leaves_no_half_of_it(tmp_path):
    class InterruptError(BaseException):
        pass

    def cut_off(store):
        with store._transaction():
            store._database.execute("delete from samples")
            raise InterruptError

    with EvaluationStore(filled(tmp_path), MODEL) as store:
        with pytest.raises(InterruptError):
            cut_off(store)
        assert len(store.sample_results("first")) == 2
        store.add("first", outcome(2))
        assert len(store.sample_results("first")) == 3


def _run_telling(pipe, model, out, log):
    """In a process of its own: do what is missing, and say each time that something was kept."""
    evaluation = toy.evaluation(model, out, toy.Toy(log=log))
    evaluation.run(in_process_executor(Worker(str(model))), lambda cell, news: pipe.send(isinstance(news, CellSummary)))


def test_killed_at_random_moments_it_ends_with_the_results_of_an_undisturbed_run(
    tmp_path, toy_model, undisturbed_folder, undisturbed
):
    dice = random.Random(7)
    fork = multiprocessing.get_context("fork")  # a start costs nothing, so that there can be many
    out, log = tmp_path / "out", tmp_path / "log"
    rows, kills = 0, 0
    with EvaluationStore(undisturbed_folder) as store:
        model = store.model
    while True:
        ours, theirs = fork.Pipe(duplex=False)
        process = fork.Process(target=_run_telling, args=(theirs, toy_model, out, str(log)))
        process.start()
        theirs.close()
        if kills == KILLS:
            process.join()
            assert process.exitcode == 0
            break
        kept_now = sum(not ours.recv() for _ in range(dice.choice([0, 1, 2, 3]) if rows < 40 else 0))
        time.sleep(dice.uniform(0, 0.03))
        process.kill()
        process.join()
        kills += 1
        if (out / "results.sqlite").exists():
            with EvaluationStore(out, model) as store:  # which checks that the file is whole
                after = sum(len(cell.sample_results) for cell in store.cells())
            assert after >= rows + kept_now
            rows = after
    with EvaluationStore(out) as store:
        assert toy.kept(store) == undisturbed
    asked_for = sum(len(outcomes) for *_, outcomes in undisturbed)
    assert asked_for <= len(toy.logged(log)) <= asked_for + KILLS  # a kill costs the sample in flight, no more
    for name in ("cells.csv", "samples.jsonl"):
        assert _without_seconds(out / name) == _without_seconds(undisturbed_folder / name)


def _without_seconds(path):
    if path.suffix == ".csv":
        return path.read_text()
    return [{**json.loads(line), "seconds": 0} for line in path.read_text().splitlines()]


def test_a_full_disk_stops_the_run_with_a_line_and_nothing_is_lost(tmp_path, toy_model, undisturbed):
    evaluation = toy.evaluation(toy_model, tmp_path / "out")
    with evaluation.store as store:
        pages = store._database.execute("pragma page_count").fetchone()[0]
        store._database.execute(f"pragma max_page_count = {pages}")
        with pytest.raises(
            RuntimeError, match=r"^[^\n]*results\.sqlite cannot be written \(database or disk is full\)"
        ):
            evaluation.run()
        found = sum(len(cell.sample_results) for cell in store.cells())
        assert 0 < found < 48
        assert len((tmp_path / "out" / "samples.jsonl").read_text().splitlines()) == found
    again = toy.evaluation(toy_model, tmp_path / "out")
    with again.store as store:
        again.run()
        assert toy.kept(store) == undisturbed


@pytest.fixture
def small_disk(tmp_path):
    """A disk of 128 KiB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=128k", "tmpfs", str(folder)]
    if shutil.which("mount") is None or subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("a disk cannot be mounted here")
    yield folder
    subprocess.run(["umount", "--lazy", str(folder)], check=True)


def test_a_disk_that_is_really_full(small_disk, toy_model, undisturbed):
    ballast = small_disk / "ballast"
    evaluation = toy.evaluation(toy_model, small_disk / "out")
    with open(ballast, "wb", buffering=0) as file, suppress(OSError):
        while file.write(bytes(512)):
            pass
    with evaluation.store, pytest.raises(RuntimeError, match=r"^[^\n]*results\.sqlite cannot be written \([^\n]*\)"):
        evaluation.run()
    with pytest.raises((OSError, RuntimeError, rw.InputError), match=r"^[^\n]*$"):
        toy.evaluation(toy_model, small_disk / "another")
    with pytest.raises(OSError, match="No space left"):
        files.write_whole(small_disk / "large", "x" * 200_000)
    ballast.unlink()
    again = toy.evaluation(toy_model, small_disk / "out")
    with again.store as store:
        again.run()
        assert toy.kept(store) == undisturbed
