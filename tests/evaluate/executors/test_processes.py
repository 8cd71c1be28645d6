from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import psutil
import pytest
from tests.helpers import toy_task as toy

import ropewalk as rw
from ropewalk.evaluate.evaluation import run_evaluation
from ropewalk.evaluate.executors import TRIES
from ropewalk.evaluate.executors.processes import process_executor

pytestmark = pytest.mark.usefixtures("no_model")


def children():
    """Of this process; but the one that counts the resources of `spawn`, which stays."""
    return [child for child in psutil.Process().children() if "resource_tracker" not in " ".join(child.cmdline())]


def run(model, out, task, jobs=2):
    evaluation = toy.evaluation(model, out, task)
    with evaluation.store:
        evaluation.run(process_executor(str(model), "float32", jobs))
        return toy.kept(evaluation.store)


def test_two_processes_give_what_one_gives(tmp_path, toy_model, undisturbed):
    log = tmp_path / "log"
    assert run(toy_model, tmp_path / "out", toy.Toy(log=str(log))) == undisturbed
    given = toy.logged(log)
    assert set(Counter(sample for sample, _ in given).values()) == {1}
    assert len({pid for _, pid in given}) == 2
    assert os.getpid() not in {pid for _, pid in given}
    assert not children()


def test_a_worker_that_is_killed_is_replaced_and_nothing_is_lost_or_done_twice(tmp_path, toy_model, undisturbed):
    log = tmp_path / "log"
    assert run(toy_model, tmp_path / "out", toy.Toy(log=str(log), dies_at=3)) == undisturbed
    given = toy.logged(log)
    assert set(Counter(sample for sample, _ in given).values()) == {1}
    assert len({pid for _, pid in given}) == 3
    assert not children()


def test_a_cell_that_always_kills_its_worker_is_named_and_what_came_before_is_kept(tmp_path, toy_model):
    log = tmp_path / "log"
    evaluation = toy.evaluation(
        toy_model, tmp_path / "out", toy.Toy(log=str(log), dies_at=3, once=False), scalings=["none"]
    )
    with evaluation.store:
        with pytest.raises(
            RuntimeError, match=rf"^the worker on toy at 16 tokens under none was lost {TRIES} times: .*-9$"
        ):
            evaluation.run(process_executor(str(toy_model), "float32", 1))
        assert [len(cell.sample_results) for cell in evaluation.results()] == [0, 3, 8]  # the longest is done first
    assert not children()


@pytest.mark.parametrize(
    ("wrong", "kind", "line"),
    [("input", rw.InputError, "lengths: got 32; expected less"), ("oops", RuntimeError, "KeyError: 'oops'")],
)
def test_an_error_of_a_worker_is_raised_here(tmp_path, toy_model, wrong, kind, line):
    with pytest.raises(kind) as raised:
        run(toy_model, tmp_path / "out", toy.Toy(wrong=wrong), jobs=1)
    assert str(raised.value) == line
    assert not children()


def test_an_interrupt_ends_all_workers(tmp_path, toy_model):
    def interrupt(cell, news):
        raise KeyboardInterrupt

    evaluation = toy.evaluation(toy_model, tmp_path / "out")
    with evaluation.store:
        with pytest.raises(KeyboardInterrupt):
            evaluation.run(process_executor(str(toy_model), "float32", 2), interrupt)
        assert not children()
        assert sum(len(cell.sample_results) for cell in evaluation.results()) == 1


def test_no_worker_outlives_a_parent_that_is_killed(tmp_path, toy_model):
    log = tmp_path / "log"
    program = (
        "import toy; from ropewalk.evaluate.executors.processes import processes;"
        f"task = toy.Toy(log={str(log)!r}, slow=600);"  # nothing but its parent's end makes a worker look up
        f"evaluation = toy.evaluation({str(toy_model)!r}, {str(tmp_path / 'out')!r}, task);"
        f"evaluation.run(processes({str(toy_model)!r}, 'float32', 2))"
    )
    path = os.pathsep.join([str(Path(__file__).parents[3]), os.environ.get("PYTHONPATH", "")])
    parent = subprocess.Popen([sys.executable, "-c", program], env={**os.environ, "PYTHONPATH": path})
    while len({pid for _, pid in toy.logged(log)}) < 2:
        assert parent.poll() is None
        time.sleep(0.05)
    workers = psutil.Process(parent.pid).children(recursive=True)
    os.kill(parent.pid, signal.SIGKILL)
    parent.wait()
    assert len(workers) >= 2
    _, left = psutil.wait_procs(workers, timeout=30)
    assert not [each for each in left if each.status() != psutil.STATUS_ZOMBIE]


def test_a_model_that_is_loaded_cannot_be_sent(tiny):
    with pytest.raises(rw.InputError, match="jobs: got 2; expected 1 for a model that is loaded"):
        process_executor((tiny, None), None, 2)


def test_a_real_model(tmp_path, tiny_folder, monkeypatch):
    monkeypatch.undo()  # workers load their models
    asked = {"scalings": ["none", "dynamic-yarn"], "tasks": ["passkey"], "lengths": [128], "samples": 2}
    in_process_executor = run_evaluation(str(tiny_folder), **asked, out=tmp_path / "alone", dtype="float32")
    executor = process_executor(str(tiny_folder), "float32", 2)
    several = run_evaluation(str(tiny_folder), **asked, out=tmp_path / "several", dtype="float32", executor=executor)
    assert [cell.summary for cell in several] == [cell.summary for cell in in_process_executor]
    for mine, theirs in zip(several, in_process_executor, strict=True):
        assert [{**each, "seconds": 0} for each in mine.sample_results] == [
            {**each, "seconds": 0} for each in theirs.sample_results
        ]
