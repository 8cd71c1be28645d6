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
from ropewalk.errors import MissingPackageError
from ropewalk.evaluate.executors import MAX_ATTEMPTS
from ropewalk.evaluate.executors import ray as ray_module
from ropewalk.evaluate.executors.ray import ray_executor

ray = pytest.importorskip("ray")
SMALL_NODE = {"num_cpus": 1, "object_store_memory": 80 * 2**20, "include_dashboard": False}


@pytest.fixture(scope="module")
def cluster():
    """The address of a cluster of two nodes on this machine, each with room for one worker."""
    from ray.cluster_utils import Cluster

    path = os.pathsep.join([str(Path(__file__).parents[3]), os.environ.get("PYTHONPATH", "")])
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ROPEWALK_TOY", "1")
        patch.setenv("PYTHONPATH", path)
        before = psutil.Process().children(recursive=True)
        two_nodes = Cluster(initialize_head=True, head_node_args=SMALL_NODE)
        try:
            two_nodes.add_node(**SMALL_NODE)
            yield two_nodes.address
        finally:
            started = [child for child in psutil.Process().children(recursive=True) if child not in before]
            two_nodes.shutdown()
    _, alive = psutil.wait_procs(started, timeout=30)
    assert not [process for process in alive if process.status() != psutil.STATUS_ZOMBIE]


@pytest.fixture(autouse=True)
def _no_model(no_model):
    """Every test here runs workers without a model."""


@pytest.fixture
def short_timeouts(monkeypatch):
    monkeypatch.setattr(ray_module, "_PORT_TIMEOUT", 1)
    monkeypatch.setattr(ray_module, "_CLUSTER_TIMEOUT", 5)


def connection_error(address, model, out):
    """Run an evaluation on a cluster that cannot be used, and return the error message."""
    evaluation = toy.make_evaluation(model, out)
    with evaluation.store, pytest.raises(rw.InputError) as error:
        evaluation.run(ray_executor(str(model), "float32", address))
    assert not ray.is_initialized()
    return str(error.value)


def test_a_killed_worker_is_replaced_and_no_finished_sample_is_computed_again(
    cluster, tmp_path, toy_model, undisturbed, capfd
):
    log = tmp_path / "log"
    evaluation = toy.make_evaluation(toy_model, tmp_path / "out", toy.ToyTask(log=str(log), dies_at=3))
    with evaluation.store:
        evaluation.run(ray_executor(str(toy_model), "float32", cluster))
        assert toy.stored_cells(evaluation.store) == undisturbed
    answers = toy.read_log(log)
    workers = {process for _, process in answers}
    assert len(workers) == 3  # one on each node, and the replacement of the one that died
    assert os.getpid() not in workers
    repeated = [sample for sample, times in Counter(sample for sample, _ in answers).items() if times > 1]
    assert all(length == 16 and index < 3 for length, _, index in repeated)  # in flight when the worker died
    assert not ray.is_initialized()
    assert capfd.readouterr().out == ""


def test_a_cell_that_always_kills_its_worker_is_named(cluster, tmp_path, toy_model):
    # Messages in flight are lost with their worker; the delay before it dies leaves them time to arrive.
    task = toy.ToyTask(log=str(tmp_path / "log"), dies_at=3, dies_once=False, delay=0.5)
    evaluation = toy.make_evaluation(toy_model, tmp_path / "out", task, scalings=["none"], lengths=[16])
    with evaluation.store:
        with pytest.raises(
            RuntimeError, match=rf"^the worker on toy at 16 tokens under none was lost {MAX_ATTEMPTS} times: .+$"
        ):
            evaluation.run(ray_executor(str(toy_model), "float32", cluster, jobs=1))
        (cell,) = evaluation.results()
        assert [result["index"] for result in cell.sample_results] == [0, 1, 2]


def test_an_error_in_a_worker_is_raised_and_an_existing_connection_stays_open(cluster, tmp_path, toy_model):
    ray.init(cluster, log_to_driver=False)
    try:
        evaluation = toy.make_evaluation(toy_model, tmp_path / "out", toy.ToyTask(error="input"))
        with evaluation.store, pytest.raises(rw.InputError, match=r"^lengths: got 32; expected less$"):
            evaluation.run(ray_executor(str(toy_model), "float32", cluster))
        assert ray.is_initialized()
    finally:
        ray.shutdown()


def test_a_cluster_without_room_for_a_worker_is_refused(cluster, tmp_path, toy_model):
    evaluation = toy.make_evaluation(toy_model, tmp_path / "out")
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
def test_an_address_without_a_cluster_is_refused(tmp_path, toy_model, address, shown, short_timeouts):
    assert connection_error(address, toy_model, tmp_path).startswith(f"ray: got '{shown}")


def test_an_address_of_another_program_is_refused(tmp_path, toy_model, short_timeouts):
    with socket.create_server(("127.0.0.1", 0)) as other_program:
        address = f"127.0.0.1:{other_program.getsockname()[1]}"
        assert f"{address} (no answer in 5 seconds)" in connection_error(address, toy_model, tmp_path)


def test_without_ray_the_message_tells_how_to_install_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(MissingPackageError, match=r"needs the package ray: pip install 'ropewalk\[ray\]'"):
        ray_executor("model", None)


def test_a_loaded_model_is_refused(tiny):
    with pytest.raises(rw.InputError, match="given by its name"):
        ray_executor((tiny, None), None)
