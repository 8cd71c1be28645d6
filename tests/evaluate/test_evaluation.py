from __future__ import annotations

from dataclasses import dataclass

import pytest
from tests.helpers import toy_task as toy

import ropewalk as rw
from ropewalk.evaluate.evaluation import run_evaluation
from ropewalk.evaluate.executors.in_process import in_process_executor
from ropewalk.evaluate.worker import CellSummary, Worker

pytestmark = pytest.mark.usefixtures("no_model")


@pytest.fixture
def run(tmp_path, toy_model):
    """Run a toy evaluation in the one folder; returns what is kept, and what was answered anew."""
    log = tmp_path / "log"

    def _run(task=None, **options):
        log.unlink(missing_ok=True)
        evaluation = toy.evaluation(toy_model, tmp_path / "out", task or toy.Toy(log=str(log)), **options)
        with evaluation.store:
            evaluation.run()
            return toy.kept(evaluation.store), [sample for sample, _ in toy.logged(log)]

    return _run


def test_cells_are_shown_in_order_and_the_longest_are_done_first(run):
    kept, answered = run()
    shown = [(description["length"], description["scaling"]) for _, description, *_ in kept]
    assert shown == [(length, scaling) for length in toy.LENGTHS for scaling in toy.SCALINGS]
    assert list(dict.fromkeys((length, scaling) for length, scaling, _ in answered)) == [
        (length, scaling) for length in reversed(toy.LENGTHS) for scaling in toy.SCALINGS
    ]


def test_outcomes_and_summaries_are_those_of_the_task(run):
    kept, _ = run(scalings=["none"], lengths=[8], samples=2)
    [(_, _, summary, outcomes)] = kept
    answers = ["none [0, 8, 0]", "none [0, 8, 1]"]
    assert [outcome["answer"] for outcome in outcomes] == answers
    assert [outcome["scores"] for outcome in outcomes] == [{"half": 14.0, "even": 1.0}, {"half": 14.5, "even": 0.0}]
    assert [(o["index"], o["tokens"], o["references"], o["about"]) for o in outcomes] == [
        (0, 3, ["0"], {"depth": 0.0}),
        (1, 3, ["1"], {"depth": 0.125}),
    ]
    assert outcomes[0]["prompt"] != outcomes[1]["prompt"]
    assert summary == {"half": 14.25, "even": 0.5}


def test_the_same_call_again_does_nothing(run):
    first, answered = run()
    assert len(answered) == 48
    again, answered = run()
    assert (again, answered) == (first, [])


@pytest.mark.parametrize("after", [0, 1, 8, 9, 20, 53])
def test_after_an_interrupt_only_what_is_missing_is_done(run, tmp_path, toy_model, undisturbed, after):
    """`after` so many words: of each cell 8 outcomes and a summary."""
    told = []

    def interrupt(cell, news):
        told.append(news)
        if len(told) > after:
            raise KeyboardInterrupt

    evaluation = toy.evaluation(toy_model, tmp_path / "out")
    with evaluation.store, pytest.raises(KeyboardInterrupt):
        evaluation.run(tell=interrupt)
    done = sum(not isinstance(news, CellSummary) for news in told)
    assert len((tmp_path / "out" / "samples.jsonl").read_text().splitlines()) == done
    kept, answered = run()
    assert kept == undisturbed
    assert len(answered) == 48 - done


def test_a_larger_grid_in_the_same_folder_takes_over_what_is_there(run):
    run(scalings=["none"], lengths=[8, 16])
    kept, answered = run(scalings=["linear:factor=2", "none"])
    assert len(kept) == 6
    assert set(answered) == {
        (length, scaling, index)
        for length in toy.LENGTHS
        for scaling in toy.SCALINGS
        for index in range(8)
        if scaling != "none" or length == 32
    }


@dataclass(frozen=True)
class Optioned(toy.Toy):
    name = "optioned"

    option: int = 1

    def options(self):
        return {"option": self.option}


@dataclass(frozen=True)
class Newer(toy.Toy):
    version = 2


@dataclass(frozen=True)
class Text(toy.Toy):
    text: str = "old"

    def fingerprint(self):
        return {"text": self.text}


ONE = {"scalings": ["none"], "lengths": [8]}


@pytest.mark.parametrize(
    ("first", "then"),
    [
        ({}, {"seed": 1}),
        ({}, {"samples": 7}),
        ({}, {"task": Newer()}),
        ({"task": Optioned()}, {"task": Optioned(option=2)}),
        ({"task": Text()}, {"task": Text(text="new")}),
        ({"scalings": ["dynamic-yarn"]}, {"scalings": ["dynamic-yarn"], "policy": "request"}),
        ({"scalings": ["linear:factor=2"]}, {"scalings": ["linear:factor=2.5"]}),
    ],
)
def test_whatever_changes_the_samples_makes_new_cells(run, first, then):
    run(**{**ONE, **first})
    kept, _ = run(**{**ONE, **then})
    assert len(kept) == 2
    assert all(summary is not None for _, _, summary, _ in kept)


def test_the_policy_is_no_part_of_what_does_not_follow_the_text(run):
    run(**ONE)
    kept, answered = run(**ONE, policy="request")
    assert (len(kept), answered) == (1, [])


def test_a_crew_is_closed_when_a_run_stops(tmp_path, toy_model):
    ended = []

    def executor(jobs, done):
        try:
            yield from in_process_executor(Worker("toy"))(jobs, done)
        finally:
            ended.append(True)

    def stop(cell, news):
        raise KeyboardInterrupt

    evaluation = toy.evaluation(toy_model, tmp_path / "out")
    with evaluation.store, pytest.raises(KeyboardInterrupt) as held:
        evaluation.run(executor, stop)
    assert ended
    assert held.tb  # which holds all that was running


def test_an_export_that_fails_does_not_hide_what_stopped_the_run(tmp_path, toy_model, monkeypatch):
    evaluation = toy.evaluation(toy_model, tmp_path / "out", toy.Toy(wrong="oops"))

    def full():
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(evaluation.store, "export", full)
    with evaluation.store, pytest.raises(KeyError, match="oops"):
        evaluation.run()


def test_a_folder_whose_run_could_not_begin_is_free(tmp_path, toy_model, monkeypatch):
    def full(*_):
        raise RuntimeError("full")

    with monkeypatch.context() as patch:
        patch.setattr("ropewalk.evaluate.evaluation_store.EvaluationStore.begin", full)
        with pytest.raises(RuntimeError, match="full") as held:
            toy.evaluation(toy_model, tmp_path / "out")
    assert held.tb  # which holds the evaluation that failed
    toy.evaluation(toy_model, tmp_path / "out").store.close()


def test_the_folder_of_another_model_is_refused(run, toy_model):
    run(**ONE)
    with pytest.raises(rw.InputError, match=r"another run \(dtype 'float32', now 'bfloat16'\)"):
        run(**ONE, dtype="bfloat16")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"scalings": []}, "scaling: got 'none'; expected at least one"),
        ({"lengths": []}, "lengths: got 'none'; expected at least one"),
        ({"lengths": [0]}, "lengths: got 0; expected a whole number of tokens"),
        ({"samples": 0}, "samples: got 0"),
        ({"policy": "sometimes"}, "policy: got 'sometimes'"),
        ({"dtype": "int8"}, "dtype: got 'int8'"),
    ],
)
def test_what_cannot_be_run_is_refused_before_there_is_a_folder(run, tmp_path, options, message):
    with pytest.raises(rw.InputError, match=message):
        run(**{**ONE, **options})
    assert not (tmp_path / "out").exists()


def test_in_one_call(tmp_path, toy_model, undisturbed):
    cells = run_evaluation(
        str(toy_model),
        scalings=toy.SCALINGS,
        tasks=[toy.Toy()],
        lengths=toy.LENGTHS,
        out=tmp_path / "out",
        samples=8,
        dtype="float32",
    )
    assert [(cell.key, cell.summary) for cell in cells] == [(key, summary) for key, _, summary, _ in undisturbed]
