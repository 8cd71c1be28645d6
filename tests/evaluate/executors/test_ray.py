from __future__ import annotations

import os
import socket
import sys
from collections import Counter
from pathlib import Path

import psutil
import pytest
from tests.helpers import toy_task as toy

import ropewalk as rw
from ropewalk.evaluate.executors import TRIES
from ropewalk.evaluate.executors import ray as crew_file
from ropewalk.evaluate.executors.ray import ray_executor

ray = pytest.importorskip("ray")
SMALL = {"num_cpus": 1, "object_store_memory": 80 * 2**20, "include_dashboard": False}


@pytest.fixture(scope="module")
def cluster():
    """A cluster of two nodes, each a few processes on this machine with room for one worker."""
    from ray.cluster_utils import Cluster

    path = os.pathsep.join([str(Path(__file__).parents[3]), os.environ.get("PYTHONPATH", "")])
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ROPEWALK_TOY", "1")
        patch.setenv("PYTHONPATH", path)
        before = psutil.Process().children(recursive=True)
        two = Cluster(initialize_head=True, head_node_args=SMALL)
        try:
            two.add_node(**SMALL)
            yield two.address
        finally:
            started = [each for each in psutil.Process().children(recursive=True) if each not in before]
            two.shutdown()
    _, left = psutil.wait_procs(started, timeout=30)
    assert not [each for each in left if each.status() != psutil.STATUS_ZOMBIE]


@pytest.fixture(autouse=True)
def _no_model(no_model):
    pass


@pytest.fixture
def short_patience(monkeypatch):
    monkeypatch.setattr(crew_file, "_PATIENCE", (1, 5))


def refused(address, model, out):
    """The one line with which a cluster is refused."""
    evaluation = toy.evaluation(model, out)
    with evaluation.store, pytest.raises(rw.InputError) as error:
        evaluation.run(ray_executor(str(model), "float32", address))
    assert not ray.is_initialized()
    return str(error.value)


def test_a_worker_of_a_cluster_is_killed_and_nothing_is_lost_or_done_twice(
    cluster, tmp_path, toy_model, undisturbed, capfd
):
    log = tmp_path / "log"
    evaluation = toy.evaluation(toy_model, tmp_path / "out", toy.Toy(log=str(log), dies_at=3))
    with evaluation.store:
        evaluation.run(ray_executor(str(toy_model), "float32", cluster))
        assert toy.kept(evaluation.store) == undisturbed
    given = toy.logged(log)
    workers = {pid for _, pid in given}
    assert len(workers) == 3  # one on each node, and the one that took the place of the one that died
    assert os.getpid() not in workers
    again = [sample for sample, times in Counter(sample for sample, _ in given).items() if times > 1]
    assert all(length == 16 and index < 3 for length, _, index in again)  # what was on its way when the worker died
    assert not ray.is_initialized()
    assert capfd.readouterr().out == ""


def test_a_cell_that_always_kills_its_worker_is_named(cluster, tmp_path, toy_model):
    task = toy.Toy(log=str(tmp_path / "log"), dies_at=3, once=False)
    evaluation = toy.evaluation(toy_model, tmp_path / "out", task, scalings=["none"], lengths=[16])
    with evaluation.store:
        with pytest.raises(
            RuntimeError, match=rf"^the worker on toy at 16 tokens under none was lost {TRIES} times: .+$"
        ):
            evaluation.run(ray_executor(str(toy_model), "float32", cluster, jobs=1))
        assert [len(cell.sample_results) for cell in evaluation.results()] == [3]


def test_an_error_of_a_worker_is_raised_here_and_a_connection_of_the_user_stays(cluster, tmp_path, toy_model):
    ray.init(cluster, log_to_driver=False)
    try:
        evaluation = toy.evaluation(toy_model, tmp_path / "out", toy.Toy(wrong="input"))
        with evaluation.store, pytest.raises(rw.InputError, match=r"^lengths: got 32; expected less$"):
            evaluation.run(ray_executor(str(toy_model), "float32", cluster))
        assert ray.is_initialized()
    finally:
        ray.shutdown()


def test_more_gpus_than_a_node_has(cluster, tmp_path, toy_model):
    evaluation = toy.evaluation(toy_model, tmp_path / "out")
    with evaluation.store, pytest.raises(rw.InputError, match=r"no node with room .* 1 CPU and 0\.5 GPUs"):
        evaluation.run(ray_executor(str(toy_model), "float32", cluster, gpus_per_worker=0.5))


@pytest.mark.parametrize(
    ("address", "shown"),
    [
        ("127.0.0.1:1", "127.0.0.1:1 ("),
        ("nowhere.invalid:6379", "nowhere.invalid:6379 ("),
        ("ray://localhost:1", "ray://localhost:1 ("),
        ("localhost", "localhost'"),
        ("localhost:port", "localhost:port'"),
    ],
)
def test_an_address_where_nothing_answers(tmp_path, toy_model, address, shown, short_patience):
    assert refused(address, toy_model, tmp_path).startswith(f"ray: got '{shown}")


def test_an_address_where_something_else_answers(tmp_path, toy_model, short_patience):
    with socket.create_server(("127.0.0.1", 0)) as other:
        address = f"127.0.0.1:{other.getsockname()[1]}"
        assert f"{address} (no answer in 5 seconds)" in refused(address, toy_model, tmp_path)


def test_without_the_package(monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(rw.InputError, match=r"pip install 'ropewalk\[ray\]'"):
        ray_executor("model", None)


def test_a_model_that_is_loaded_cannot_be_sent(tiny):
    with pytest.raises(rw.InputError, match="by its name"):
        ray_executor((tiny, None), None)
