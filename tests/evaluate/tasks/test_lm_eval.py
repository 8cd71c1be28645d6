"""Tasks of lm-evaluation-harness by name: the results are those of the harness itself."""

from __future__ import annotations

import pytest
from tests.helpers.chat import with_template

import ropewalk as rw
from ropewalk.compat import lm_eval as compat
from ropewalk.errors import InputError
from ropewalk.evaluate.grid import make_grid
from ropewalk.evaluate.tasks import parse_task
from ropewalk.evaluate.worker import Worker
from ropewalk.scaling.policies import DEFAULT_POLICY


@pytest.mark.parametrize(
    ("name", "chat"),
    [
        *[(name, "auto") for name in ("user_generate", "user_filters", "user_choice", "user_rolling", "user_next")],
        *[(name, "on") for name in ("user_generate", "user_choice")],
    ],
)
def test_results_equal_those_of_simple_evaluate(name, chat, user_tasks, tiny, characters, tmp_path, monkeypatch):
    import lm_eval
    from lm_eval.tasks import TaskManager

    from ropewalk.evaluate.harness.model import RopewalkLM

    characters = with_template(characters)
    (cell,) = rw.run_evaluation(
        (tiny, characters),
        scalings=["linear:factor=2"],
        chat=chat,
        tasks=[f"lm_eval:{name},include={user_tasks}"],
        lengths=[48],
        samples=5,
        out=tmp_path / "out",
    )
    monkeypatch.setattr("lm_eval.evaluator.add_env_info", lambda results: None)  # runs pip
    with compat.quiet():
        theirs = lm_eval.simple_evaluate(
            model=RopewalkLM(tiny, tokenizer=characters, scaling="linear:factor=2", max_length=48),
            tasks=[name],
            task_manager=TaskManager(include_path=str(user_tasks), include_defaults=False),
            limit=5,
            apply_chat_template=chat == "on",
            bootstrap_iters=0,
        )
    rw.restore(tiny)
    assert cell.description["chat"] == (chat == "on"), "auto is the default of the harness"
    has_filters = name == "user_filters"
    scores = {
        key if has_filters else key.partition(",")[0]: value
        for key, value in theirs["results"][name].items()
        if "," in key and "stderr" not in key
    }
    assert cell.summary == pytest.approx(scores)
    assert all(result["tokens"] <= 48 for result in cell.sample_results)
    if name in ("user_generate", "user_filters"):  # the answers to the others are likelihoods
        answers = {sample["doc_id"]: sample["resps"][0][0] for sample in theirs["samples"][name]}
        assert {result["index"]: result["answer"] for result in cell.sample_results} == answers
    assert cell.description["main"] in cell.summary
    assert cell.description["better"] == ("higher" if name in ("user_generate", "user_filters") else "lower")


def test_a_cell_can_be_summarized_from_stored_results(user_tasks, tiny, characters, tmp_path):
    """Scores of word perplexity are pairs, which are lists when they are read from the store."""
    tasks = [f"lm_eval:{name},include={user_tasks}" for name in ("user_rolling", "user_generate")]
    cells = rw.run_evaluation((tiny, characters), scalings=["none"], tasks=tasks, lengths=[48], samples=4, out=tmp_path)
    for cell in cells:
        (again,) = make_grid(["none"], [cell.description["task"]], [48], samples=4, seed=0, policy=DEFAULT_POLICY)
        stored = {result["index"]: result for result in cell.sample_results}
        (summary,) = Worker((tiny, characters)).run(again, stored)
        assert summary.scores == cell.summary


def test_groups_and_tags_expand_to_the_users_and_the_harness_s_tasks(user_tasks):
    def expand(name):
        return [task.task for task in parse_task(f"lm_eval:{name},include={user_tasks}").expand()]

    assert expand("user_pair") == ["user_rolling", "user_next"]
    assert expand("ai2_arc") == ["arc_challenge", "arc_easy"]


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("lm_eval:arc_eesy", r"lm_eval: task: got 'arc_eesy'; .*did you mean arc_easy"),
        ("lm_eval", r"lm-eval: task: got None"),
        ("lm_eval:task=5", r"lm_eval: task: got '5'"),
        ("lm_eval:arc_easy,include=nowhere", r"lm_eval: include: got 'nowhere'"),
        ("lm_eval:arc_easy,fewshot=-1", r"lm_eval: fewshot: got -1"),
    ],
)
def test_invalid_options_are_refused(spec, message, user_tasks):
    with pytest.raises(InputError, match=message):
        parse_task(spec).expand()


def test_a_task_with_sampled_answers_is_refused(user_tasks, characters):
    with pytest.raises(InputError, match="answered greedily"):
        parse_task(f"lm_eval:user_sampled,include={user_tasks}").make_samples(characters, 48, 2, seed=0)


def test_a_data_set_that_cannot_be_read_is_named(user_tasks, characters):
    (user_tasks / "questions.jsonl").unlink()
    with pytest.raises(InputError, match="user_next, whose data set json cannot be read"):
        parse_task(f"lm_eval:user_next,include={user_tasks}").make_samples(characters, 48, 2, seed=0)


def test_the_fingerprint_contains_the_users_files(user_tasks):
    task = parse_task(f"lm_eval:user_next,include={user_tasks}")
    before = task.fingerprint()
    assert before["task"] == "3.0"
    with (user_tasks / "questions.jsonl").open("a") as file:
        file.write("\n")
    assert task.fingerprint() != before
