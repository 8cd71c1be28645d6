"""ropewalk as a model of lm-evaluation-harness."""

from __future__ import annotations

import functools
import json
import runpy
import sys

import pytest
from tests.helpers.harness_tasks import character_tokenizer, write_user_tasks

import ropewalk as rw
from ropewalk.compat.lm_eval import quiet
from ropewalk.errors import UnknownNameError
from ropewalk.evaluate.harness.model import RopewalkLM


@pytest.fixture(scope="module")
def characters():
    return character_tokenizer()


def test_a_dynamic_scaling_limits_the_batch_size_to_one(tiny, characters):
    with quiet():
        assert RopewalkLM(tiny, tokenizer=characters, scaling="linear:factor=2", batch_size=4).batch_size == 4
        assert RopewalkLM(tiny, tokenizer=characters, scaling="dynamic-yarn", batch_size=4).batch_size == 1
    rw.restore(tiny)


def test_the_tokenizer_of_the_caller_is_not_changed(tiny, characters):
    with quiet():
        assert RopewalkLM(tiny, tokenizer=characters).tokenizer.pad_token is not None
    assert characters.pad_token is None


def test_an_unknown_option_suggests_the_nearest(tiny, characters):
    with pytest.raises(UnknownNameError, match=r"model_args: got 'max_lenght'; .*did you mean max_length"):
        RopewalkLM(tiny, tokenizer=characters, max_lenght=48)


def test_the_command_line_gives_the_results_of_run_evaluation(tiny, characters, tmp_path, monkeypatch):
    """`python -m ropewalk.evaluate.harness`, without the harness's own tasks: indexing them takes 20 s."""
    import datasets
    from lm_eval.tasks import TaskManager

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    limited = functools.partialmethod(TaskManager.__init__, include_defaults=False)
    tasks = tmp_path / "tasks"
    write_user_tasks(tasks)
    tiny.save_pretrained(tmp_path / "model")
    characters.save_pretrained(tmp_path / "model")
    scaling = "yarn:factor=2,beta_fast=16"
    model_args = {"pretrained": str(tmp_path / "model"), "scaling": scaling, "max_length": 48, "dtype": "float32"}
    argv = ["lm_eval", "run", "--model", "ropewalk", "--model_args", json.dumps(model_args)]
    argv += ["--tasks", "user_choice", "--include_path", str(tasks), "--limit", "3"]
    argv += ["--output_path", str(tmp_path / "harness")]
    with monkeypatch.context() as patch, quiet():
        patch.setattr(TaskManager, "__init__", limited)
        patch.setattr("lm_eval.evaluator.add_env_info", lambda results: None)  # runs pip
        patch.setattr(sys, "argv", argv)
        runpy.run_module("ropewalk.evaluate.harness", run_name="__main__")
    (results,) = (tmp_path / "harness").rglob("results_*.json")
    theirs = json.loads(results.read_text())["results"]["user_choice"]
    (cell,) = rw.run_evaluation(
        (tiny, characters),
        scalings=[scaling],
        tasks=[f"lm_eval:user_choice,include={tasks}"],
        lengths=[48],
        samples=3,
        out=tmp_path / "ours",
    )
    assert theirs["brier_score,none"] == pytest.approx(cell.summary["brier_score"])
