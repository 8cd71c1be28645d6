from __future__ import annotations

import os
import pickle
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
from ropewalk.evaluate.executors import MAX_ATTEMPTS
from ropewalk.evaluate.executors.dispatch import worker_messages
from ropewalk.evaluate.executors.processes import process_executor
from ropewalk.evaluate.grid import Cell
from ropewalk.evaluate.worker import Worker

pytestmark = pytest.mark.usefixtures("no_model")


def child_processes():
    """Return the children of this process, except the resource tracker of `spawn`, which stays until the end."""
    return [child for child in psutil.Process().children() if "resource_tracker" not in " ".join(child.cmdline())]


def run(model, out, task, jobs=2):
    evaluation = toy.make_evaluation(model, out, task)
    with evaluation.store:
        evaluation.run(process_executor(str(model), "float32", jobs))
        return toy.stored_cells(evaluation.store)


def test_processes_share_the_samples_and_a_killed_one_is_replaced(tmp_path, toy_model, undisturbed):
    log = tmp_path / "log"
    assert run(toy_model, tmp_path / "out", toy.ToyTask(log=str(log), dies_at=3)) == undisturbed
    answers = toy.read_log(log)
    processes = {process for _, process in answers}
    assert set(Counter(sample for sample, _ in answers).values()) == {1}, "a sample was computed twice"
    assert len(processes) == 3
    assert os.getpid() not in processes
    assert not child_processes()


def test_a_cell_that_always_kills_its_worker_is_named_and_earlier_results_stay(tmp_path, toy_model):
    task = toy.ToyTask(log=str(tmp_path / "log"), dies_at=3, dies_once=False)
    evaluation = toy.make_evaluation(toy_model, tmp_path / "out", task, scalings=["none"])
    message = rf"^the worker on toy at 16 tokens under none was lost {MAX_ATTEMPTS} times: .*-9$"
    with evaluation.store:
        with pytest.raises(RuntimeError, match=message):
            evaluation.run(process_executor(str(toy_model), "float32", 1))
        # The longest cell comes first, so the one of 32 tokens is finished and the one of 8 tokens not started.
        assert [len(cell.sample_results) for cell in evaluation.results()] == [0, 3, 8]
    assert not child_processes()


def test_an_error_in_a_worker_is_raised_in_the_parent(tmp_path, toy_model):
    with pytest.raises(RuntimeError) as raised:
        run(toy_model, tmp_path / "out", toy.ToyTask(error="oops"), jobs=1)
    assert str(raised.value) == "KeyError: 'oops'"
    assert not child_processes()


def test_an_input_error_in_a_worker_stays_an_input_error():
    cell = Cell(rw.NoScaling(), rw.SteppedPolicy(), toy.ToyTask(error="input"), length=32, samples=1, seed=0)
    (failure,) = worker_messages(Worker("toy"), cell, {})
    error = pickle.loads(pickle.dumps(failure)).error
    assert type(error) is rw.InputError
    assert str(error) == "lengths: got 32; expected less"


def test_an_interrupt_ends_all_workers(tmp_path, toy_model):
    def interrupt(cell, result):
        raise KeyboardInterrupt

    evaluation = toy.make_evaluation(toy_model, tmp_path / "out")
    with evaluation.store:
        with pytest.raises(KeyboardInterrupt):
            evaluation.run(process_executor(str(toy_model), "float32", 2), interrupt)
        assert not child_processes()
        assert sum(len(cell.sample_results) for cell in evaluation.results()) == 1


def test_workers_exit_when_their_parent_is_killed(tmp_path, toy_model):
    log = tmp_path / "log"
    # With a delay of 10 minutes per sample, the workers exit in time only if they notice that the parent is gone.
    program = (
        "from tests.helpers import toy_task as toy;"
        "from ropewalk.evaluate.executors.processes import process_executor;"
        f"task = toy.ToyTask(log={str(log)!r}, delay=600);"
        f"evaluation = toy.make_evaluation({str(toy_model)!r}, {str(tmp_path / 'out')!r}, task);"
        f"evaluation.run(process_executor({str(toy_model)!r}, 'float32', 2))"
    )
    path = os.pathsep.join([str(Path(__file__).parents[3]), os.environ.get("PYTHONPATH", "")])
    parent = subprocess.Popen([sys.executable, "-c", program], env={**os.environ, "PYTHONPATH": path})
    while len({process for _, process in toy.read_log(log)}) < 2:
        assert parent.poll() is None
        time.sleep(0.05)
    workers = psutil.Process(parent.pid).children(recursive=True)
    os.kill(parent.pid, signal.SIGKILL)
    parent.wait()
    assert len(workers) >= 2
    _, alive = psutil.wait_procs(workers, timeout=30)
    assert not [process for process in alive if process.status() != psutil.STATUS_ZOMBIE]


def test_a_loaded_model_is_refused(tiny):
    with pytest.raises(rw.InputError, match="jobs: got 2; expected 1 for a model that is loaded"):
        process_executor((tiny, None), None, 2)


def test_processes_with_a_model_give_the_results_of_one(tmp_path, tiny_folder, monkeypatch):
    monkeypatch.undo()  # of `no_model`: these workers load the model
    options = {"scalings": ["none", "dynamic-yarn"], "tasks": ["passkey"], "lengths": [128], "samples": 2}
    options["dtype"] = "float32"
    expected = run_evaluation(str(tiny_folder), **options, out=tmp_path / "one")
    executor = process_executor(str(tiny_folder), "float32", 2)
    cells = run_evaluation(str(tiny_folder), **options, out=tmp_path / "two", executor=executor)
    assert [cell.summary for cell in cells] == [cell.summary for cell in expected]
    assert [toy.without_seconds(cell.sample_results) for cell in cells] == [
        toy.without_seconds(cell.sample_results) for cell in expected
    ]
