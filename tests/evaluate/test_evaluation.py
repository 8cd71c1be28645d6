from __future__ import annotations

from dataclasses import dataclass
from types import SimpleNamespace

import pytest
from tests.helpers import toy_task as toy

import ropewalk as rw
from ropewalk.evaluate.evaluation import run_evaluation
from ropewalk.evaluate.executors.in_process import in_process_executor
from ropewalk.evaluate.grid import cell_key, make_grid
from ropewalk.evaluate.worker import CellSummary, Worker
from ropewalk.scaling.policies import DEFAULT_POLICY

pytestmark = pytest.mark.usefixtures("no_model")

ALL_SAMPLES = toy.CELLS * toy.SAMPLES


@pytest.fixture
def run(tmp_path, toy_model):
    """Run a toy evaluation, always in the same folder; return what is stored, and which samples were answered."""
    log = tmp_path / "log"

    def _run(task=None, **options):
        log.unlink(missing_ok=True)
        evaluation = toy.make_evaluation(toy_model, tmp_path / "out", task or toy.ToyTask(log=str(log)), **options)
        with evaluation.store:
            evaluation.run()
            return toy.stored_cells(evaluation.store), [sample for sample, _ in toy.read_log(log)]

    return _run


def test_cells_are_shown_in_order_and_the_longest_are_computed_first(run):
    cells, answered = run()
    shown = [(description["length"], description["scaling"]) for _, description, *_ in cells]
    assert shown == [(length, scaling) for length in toy.LENGTHS for scaling in toy.SCALINGS]
    assert list(dict.fromkeys((length, scaling) for length, scaling, _ in answered)) == [
        (length, scaling) for length in reversed(toy.LENGTHS) for scaling in toy.SCALINGS
    ]


def test_results_and_summaries_are_those_of_the_task(run):
    cells, _ = run(scalings=["none"], lengths=[8], samples=2)
    [(_, _, summary, results)] = cells
    assert [result["answer"] for result in results] == ["none [0, 8, 0]", "none [0, 8, 1]"]
    assert [result["scores"] for result in results] == [{"half": 14.0, "even": 1.0}, {"half": 14.5, "even": 0.0}]
    assert [(result["index"], result["tokens"], result["references"], result["about"]) for result in results] == [
        (0, 3, ["0"], {"depth": 0.0}),
        (1, 3, ["1"], {"depth": 0.125}),
    ]
    assert results[0]["prompt"] != results[1]["prompt"]
    assert summary == {"half": 14.25, "even": 0.5}


def test_the_same_evaluation_again_computes_nothing(run):
    first, answered = run()
    assert len(answered) == ALL_SAMPLES
    again, answered = run()
    assert (again, answered) == (first, [])


@pytest.mark.parametrize("results_before", [0, 1, 8, 9, 20, 53])
def test_after_an_interrupt_only_missing_samples_are_computed(run, tmp_path, toy_model, undisturbed, results_before):
    """Each cell has 9 results: 8 samples and a summary."""
    received = []

    def interrupt(cell, result):
        received.append(result)
        if len(received) > results_before:
            raise KeyboardInterrupt

    evaluation = toy.make_evaluation(toy_model, tmp_path / "out")
    with evaluation.store, pytest.raises(KeyboardInterrupt):
        evaluation.run(on_result=interrupt)
    finished = sum(not isinstance(result, CellSummary) for result in received)
    assert len((tmp_path / "out" / "samples.jsonl").read_text().splitlines()) == finished
    cells, answered = run()
    assert cells == undisturbed
    assert len(answered) == ALL_SAMPLES - finished


def test_remaining_tokens_are_those_of_unfinished_samples(tmp_path, toy_model):
    def stop(cell, result):
        raise KeyboardInterrupt

    evaluation = toy.make_evaluation(toy_model, tmp_path / "out")
    with evaluation.store:
        assert evaluation.remaining_tokens() == len(toy.SCALINGS) * toy.SAMPLES * sum(toy.LENGTHS)
        with pytest.raises(KeyboardInterrupt):
            evaluation.run(on_result=stop)
        assert evaluation.remaining_tokens() == len(toy.SCALINGS) * toy.SAMPLES * sum(toy.LENGTHS) - max(toy.LENGTHS)
        evaluation.run()
        assert evaluation.remaining_tokens() == 0


def test_a_larger_grid_in_the_same_folder_reuses_finished_cells(run):
    run(scalings=["none"], lengths=[8, 16])
    cells, answered = run(scalings=["linear:factor=2", "none"])
    assert len(cells) == toy.CELLS
    assert set(answered) == {
        (length, scaling, index)
        for length in toy.LENGTHS
        for scaling in toy.SCALINGS
        for index in range(toy.SAMPLES)
        if scaling != "none" or length == 32
    }


@dataclass(frozen=True)
class TaskWithOption(toy.ToyTask):
    name = "toy-with-option"

    option: int = 1

    def options(self):
        return {"option": self.option}


@dataclass(frozen=True)
class NewerVersion(toy.ToyTask):
    version = 2


@dataclass(frozen=True)
class ChattyTask(toy.ToyTask):
    chat_choices = ("auto", "on")

    def make_samples(self, tokenizer, length, count, seed, chat=False):
        return super().make_samples(tokenizer, length, count, seed + 100 * chat)


@dataclass(frozen=True)
class TaskWithText(toy.ToyTask):
    text: str = "old"

    def fingerprint(self):
        return {"text": self.text}


ONE_CELL = {"scalings": ["none"], "lengths": [8]}


@pytest.mark.parametrize(
    ("first", "then"),
    [
        ({}, {"seed": 1}),
        ({}, {"samples": 7}),
        ({}, {"task": NewerVersion()}),
        ({"task": TaskWithOption()}, {"task": TaskWithOption(option=2)}),
        ({"task": TaskWithText()}, {"task": TaskWithText(text="new")}),
        ({"scalings": ["dynamic-yarn"]}, {"scalings": ["dynamic-yarn"], "policy": "request"}),
        ({"scalings": ["linear:factor=2"]}, {"scalings": ["linear:factor=2.5"]}),
    ],
)
def test_whatever_changes_the_results_makes_a_new_cell(run, first, then):
    run(**{**ONE_CELL, **first})
    cells, _ = run(**{**ONE_CELL, **then})
    assert len(cells) == 2
    assert all(summary is not None for _, _, summary, _ in cells)


@pytest.fixture
def set_template(monkeypatch):
    """Set the chat template of the tokenizer of the toy model, which has no tokenizer."""

    def _set_template(template):
        tokenizer = SimpleNamespace(**({"chat_template": template} if template else {}))
        monkeypatch.setattr("ropewalk.evaluate.evaluation.load_source_tokenizer", lambda source: tokenizer)

    return _set_template


def test_prompts_with_and_without_a_chat_template_are_different_cells(run, set_template):
    set_template("a template")
    plain, _ = run(ChattyTask(), **ONE_CELL, chat="off")
    assert plain == run(**ONE_CELL)[0], "the cell of plain text is that of a task without the choice"
    cells, _ = run(ChattyTask(), **ONE_CELL)
    assert [(description["chat"], summary is None) for _, description, summary, _ in cells] == [
        (False, False),
        (True, False),
    ]
    assert [cell[3][0]["answer"] for cell in cells] == ["none [0, 8, 0]", "none [100, 8, 0]"]
    assert run(ChattyTask(), **ONE_CELL, chat="on")[0] == cells


def test_a_chat_template_is_used_where_model_and_task_have_it(run, set_template):
    set_template(None)
    assert [description["chat"] for _, description, *_ in run(ChattyTask(), **ONE_CELL)[0]] == [False]
    with pytest.raises(rw.InputError, match=r"chat: got 'on for .*, which has no chat template'; expected auto"):
        run(ChattyTask(), **ONE_CELL, chat="on")
    set_template("a template")
    assert [description["chat"] for _, description, *_ in run(**ONE_CELL, chat="on")[0]] == [False]


def test_a_learned_scaling_has_the_same_cell_whenever_it_is_stored(tmp_path):
    def key(divisors, **described):
        scaling = rw.Learned(divisors, **described).write(tmp_path / "scaling.json")
        (cell,) = make_grid([scaling], ["passkey"], [128], samples=1, seed=0, policy=DEFAULT_POLICY)
        return cell_key({"digest": "", "dtype": "float32"}, cell.describe({}))

    assert key([1.0, 2.0]) == key([1.0, 2.0], date="2026-11-28", version="0.1.0")
    assert key([1.0, 2.0]) != key([1.0, 3.0])


def test_the_policy_does_not_matter_to_static_scalings(run):
    run(**ONE_CELL)
    cells, answered = run(**ONE_CELL, policy="request")
    assert (len(cells), answered) == (1, [])


def test_the_executor_is_closed_when_the_run_stops(tmp_path, toy_model):
    closed = []

    def executor(cells, load_finished):
        try:
            yield from in_process_executor(Worker("toy"))(cells, load_finished)
        finally:
            closed.append(True)

    def stop(cell, result):
        raise KeyboardInterrupt

    evaluation = toy.make_evaluation(toy_model, tmp_path / "out")
    with evaluation.store, pytest.raises(KeyboardInterrupt) as error:
        evaluation.run(executor, stop)
    assert closed
    assert error.tb  # the traceback is alive, so the executor was not closed by the garbage collector


def test_a_failed_export_does_not_hide_what_stopped_the_run(tmp_path, toy_model, monkeypatch):
    evaluation = toy.make_evaluation(toy_model, tmp_path / "out", toy.ToyTask(error="oops"))

    def fail():
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(evaluation.store, "export", fail)
    with evaluation.store, pytest.raises(KeyError, match="oops"):
        evaluation.run()


def test_a_folder_is_unlocked_if_its_run_cannot_begin(tmp_path, toy_model, monkeypatch):
    def fail(*_):
        raise RuntimeError("full")

    with monkeypatch.context() as patch:
        patch.setattr("ropewalk.evaluate.evaluation_store.EvaluationStore.begin", fail)
        with pytest.raises(RuntimeError, match="full") as error:
            toy.make_evaluation(toy_model, tmp_path / "out")
    assert error.tb  # the traceback is alive, so the store was not closed by the garbage collector
    toy.make_evaluation(toy_model, tmp_path / "out").store.close()


def test_the_folder_of_another_model_is_refused(run, toy_model):
    run(**ONE_CELL)
    with pytest.raises(rw.InputError, match="another run: dtype 'float32', now 'bfloat16'"):
        run(**ONE_CELL, dtype="bfloat16")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"scalings": []}, r"scaling: got \[\]; expected at least one"),
        ({"lengths": []}, r"lengths: got \[\]; expected at least one"),
        ({"lengths": [0]}, "lengths: got 0; expected a whole number of tokens"),
        ({"samples": 0}, "samples: got 0; expected a whole number of samples"),
        ({"policy": "sometimes"}, "policy: got 'sometimes'"),
        ({"chat": "yes"}, "chat: got 'yes'; expected auto, on, off"),
        ({"dtype": "int8"}, "dtype: got 'int8'"),
    ],
)
def test_wrong_arguments_are_refused_before_the_folder_is_created(run, tmp_path, options, message):
    with pytest.raises(rw.InputError, match=message):
        run(**{**ONE_CELL, **options})
    assert not (tmp_path / "out").exists()


def test_run_evaluation_does_everything_in_one_call(tmp_path, toy_model, undisturbed):
    cells = run_evaluation(
        str(toy_model),
        scalings=toy.SCALINGS,
        tasks=[toy.ToyTask()],
        lengths=toy.LENGTHS,
        out=tmp_path / "out",
        samples=toy.SAMPLES,
        dtype="float32",
    )
    assert [(cell.key, cell.summary) for cell in cells] == [(key, summary) for key, _, summary, _ in undisturbed]
