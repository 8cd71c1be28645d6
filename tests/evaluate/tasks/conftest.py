from __future__ import annotations

import pytest
from tests.helpers.harness_tasks import character_tokenizer, write_user_tasks

from ropewalk.compat import lm_eval


@pytest.fixture(scope="session")
def tokenizer(smollm2):
    return smollm2[1]


@pytest.fixture(scope="session")
def characters():
    """A tokenizer of single characters for the tiny model."""
    return character_tokenizer()


@pytest.fixture
def user_tasks(tmp_path, monkeypatch):
    """A folder with YAML files of the user's tasks and their data.

    The index of the harness's own tasks is limited to its folder `arc`; indexing all 14,000 takes 20 s.
    """
    import datasets

    index_tasks = lm_eval.index_tasks
    arc_folder = lm_eval.index_suite("arc")["arc_easy"].yaml_path.parent
    monkeypatch.setattr(lm_eval, "index_tasks", lambda folder=None: index_tasks(folder or arc_folder))
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    write_user_tasks(tmp_path / "user_tasks")
    return tmp_path / "user_tasks"
