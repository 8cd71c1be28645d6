"""The parts of lm-evaluation-harness that are not documented: each test fails if the harness changes that part."""

from __future__ import annotations

import importlib.metadata
import logging
import random
from pathlib import Path

import lm_eval.tasks
import numpy as np
import pytest
from datasets import Dataset
from tests.helpers.harness_tasks import write_user_tasks

from ropewalk.compat import lm_eval as compat
from ropewalk.errors import InputError, MissingPackageError


@pytest.fixture(scope="module")
def entries(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tasks")
    write_user_tasks(folder)
    return compat.index_tasks(folder)


@pytest.fixture(scope="module")
def data():
    return Dataset.from_list([{"question": f"w{n}", "answer": f"w{n + 1}"} for n in range(4)])


def test_a_missing_harness_is_a_missing_package(monkeypatch):
    def not_found(name):
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "version", not_found)
    with pytest.raises(MissingPackageError, match=r"needs the package lm-eval: pip install 'ropewalk\[eval\]'"):
        compat.installed_version()


def test_quiet_suppresses_everything_but_logged_errors(capfd, monkeypatch):
    monkeypatch.setattr(logging.getLogger("lm_eval"), "propagate", False)
    monkeypatch.setattr(logging.getLogger("lm_eval"), "handlers", [])
    with compat.quiet():
        print("progress")
        logging.getLogger("lm_eval").warning("advice")
        logging.getLogger("lm_eval").error("broken")
    assert capfd.readouterr() == ("", "broken\n")


def test_seeded_is_the_seed_of_simple_evaluate_and_restores_the_state():
    before = random.getstate(), np.random.get_state()[1].tolist()
    with compat.seeded(0):
        drawn = random.random(), np.random.random()
    assert drawn == (random.Random(0).random(), np.random.RandomState(1234).random())
    assert (random.getstate(), np.random.get_state()[1].tolist()) == before


def test_index_entries_have_the_attributes_in_use(entries):
    entry = entries["user_choice"]
    assert (entry.name, entry.kind.name, entry.yaml_path.name) == ("user_choice", "TASK", "user_choice.yaml")
    assert entry.cfg["output_type"] == "multiple_choice"
    assert entries["user_pair"].kind.name == "GROUP"
    assert entries["user_tag"].kind.name == "TAG"
    assert "user_choice" in entries["user_tag"].tags


def test_a_suite_is_a_folder_of_the_harness():
    suite = compat.index_suite("ruler")
    assert suite["niah_single_1"].yaml_path.parent == Path(lm_eval.tasks.__file__).parent / "ruler"


def test_groups_and_tags_expand_to_their_tasks(entries):
    def expand(name):
        return compat.expand_group(name, entries.__getitem__)

    assert expand("user_choice") == ["user_choice"]
    assert expand("user_pair") == ["user_rolling", "user_next"]
    assert expand("user_tag") == sorted(
        f"user_{name}" for name in ("generate", "filters", "choice", "rolling", "next", "sampled")
    )
    with pytest.raises(InputError, match=r"user_group.*a group that does not override its tasks"):
        expand("user_group")


def test_a_dataset_replaces_the_data_of_a_task(entries, data):
    task = compat.load_task(entries["user_generate"], seed=0, dataset=data)
    requests = compat.build_requests(task, 3, seed=0)
    assert [request.args[0] for (request,) in requests] == ["w0", "w1", "w2"]


def test_generation_settings_are_those_of_the_yaml(entries, data):
    task = compat.load_task(entries["user_generate"], seed=0, dataset=data)
    (request,) = compat.build_requests(task, 1, seed=0)[0]
    assert compat.generation_settings(request) == (8, ("w",), False)


def test_num_fewshot_adds_examples(entries, data):
    task = compat.load_task(entries["user_generate"], seed=0, dataset=data)
    (request,) = compat.build_requests(task, 1, seed=0, num_fewshot=2)[0]
    assert request.args[0].count("w") == 5  # two examples with question and answer, and the question


def test_a_document_of_several_requests_is_scored_as_one(entries, data):
    task = compat.load_task(entries["user_choice"], seed=0, dataset=data)
    (requests,) = compat.build_requests(task, 1, seed=0)
    assert len(requests) == 3
    scores = compat.score_responses(task, requests, [(-3.0, False), (-1.0, False), (-2.0, False)])
    assert scores["acc"] == 1.0  # the second choice is right and the likeliest


def test_scores_of_several_filters_are_named_by_filter(entries, data):
    task = compat.load_task(entries["user_filters"], seed=0, dataset=data)
    (requests,) = compat.build_requests(task, 1, seed=0)
    scores = compat.score_responses(task, requests, ["w1 and more"])
    assert scores == {"exact_match,first": 1.0, "exact_match,all": 0.0}


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("user_generate", ("bleu", True)),
        ("user_rolling", ("word_perplexity", False)),
        ("user_next", ("perplexity", False)),
        ("user_choice", ("brier_score", False)),
    ],
)
def test_first_metric_and_its_direction(entries, name, expected):
    assert compat.first_metric(entries[name].cfg) == expected
