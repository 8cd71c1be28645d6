from __future__ import annotations

import random

import pytest
from tests.helpers import toy_task as toy

from ropewalk.evaluate.evaluation_store import EvaluationStore
from ropewalk.evaluate.worker import Worker


@pytest.fixture(scope="session")
def toy_model(tmp_path_factory):
    """A folder with the files of a model, which nobody can load."""
    folder = tmp_path_factory.mktemp("toy")
    (folder / "config.json").write_text("{}")
    (folder / "model.safetensors").write_bytes(b"weights")
    return folder


@pytest.fixture
def no_model(monkeypatch):
    """Workers load no model, in this process and in every process that it starts."""
    monkeypatch.setenv("ROPEWALK_TOY", "1")
    monkeypatch.setattr(Worker, "_load_generator", toy.load_toy_generator)


@pytest.fixture(scope="session")
def undisturbed_folder(toy_model, tmp_path_factory):
    """The folder of a toy evaluation that ran without interruption."""
    folder = tmp_path_factory.mktemp("undisturbed")
    evaluation = toy.make_evaluation(toy_model, folder)
    with evaluation.store, pytest.MonkeyPatch.context() as patch:
        patch.setattr(Worker, "_load_generator", toy.load_toy_generator)
        evaluation.run()
    return folder


@pytest.fixture
def undisturbed(no_model, undisturbed_folder):
    """The cells that it stored."""
    with EvaluationStore(undisturbed_folder) as store:
        return toy.stored_cells(store)


@pytest.fixture(scope="session")
def random_ids():
    """200 token ids of the tiny model."""
    dice = random.Random(0)
    return [dice.randrange(97) for _ in range(200)]
