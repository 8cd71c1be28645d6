from __future__ import annotations

import pytest
from tests.helpers import toy_task as toy

from ropewalk.evaluate.evaluation_store import EvaluationStore
from ropewalk.evaluate.worker import Worker


@pytest.fixture(scope="session")
def toy_model(tmp_path_factory):
    """A folder that passes for a model as long as nobody loads it."""
    folder = tmp_path_factory.mktemp("toy")
    (folder / "config.json").write_text("{}")
    (folder / "model.safetensors").write_bytes(b"weights")
    return folder


@pytest.fixture
def no_model(monkeypatch):
    """Workers load no model, here and in every process that starts from here."""
    monkeypatch.setenv("ROPEWALK_TOY", "1")
    monkeypatch.setattr(Worker, "_load", toy.load)


@pytest.fixture(scope="session")
def undisturbed_folder(toy_model, tmp_path_factory):
    """The folder of a toy evaluation that nothing went wrong with."""
    folder = tmp_path_factory.mktemp("undisturbed")
    evaluation = toy.evaluation(toy_model, folder)
    with evaluation.store, pytest.MonkeyPatch.context() as patch:
        patch.setattr(Worker, "_load", toy.load)
        evaluation.run()
    return folder


@pytest.fixture
def undisturbed(no_model, undisturbed_folder):
    """What it kept."""
    with EvaluationStore(undisturbed_folder) as store:
        return toy.kept(store)
