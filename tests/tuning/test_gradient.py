from __future__ import annotations

import copy
import json
import random
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import pytest
import torch

import ropewalk as rw
from ropewalk.errors import InputError
from ropewalk.tuning import gradient
from ropewalk.tuning.gradient import Gradient
from ropewalk.tuning.retrieval_prompts import FactPlanter
from ropewalk.tuning.training_log import TrainingLog
from ropewalk.tuning.windows import sample_window

OPTIONS = Gradient(steps=12, facts=2, learning_rate=0.1)


class InterruptedTrainingError(Exception):
    pass


def train(job, options=OPTIONS, stop_after=None):
    """Run a training, or the first steps of one that is killed after them."""
    calls = 0

    def on_progress(share, detail):
        nonlocal calls
        calls += 1
        if calls == stop_after:
            raise InterruptedTrainingError

    return options.run(job, on_progress)


def read_log(folder):
    lines = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    return [{key: value for key, value in line.items() if key != "seconds"} for line in lines]


@pytest.fixture
def new_job(job, tmp_path):
    """Make jobs that differ in their folder."""

    def make(name, **changes):
        (tmp_path / name).mkdir(exist_ok=True)
        return replace(job, folder=tmp_path / name, **changes)

    return make


@pytest.fixture(scope="module")
def teacher(tiny):
    """A model whose predictions depend on positions, and texts that it wrote under other frequencies than YaRN's."""
    model = copy.deepcopy(tiny)
    scales = {"q_proj": 12, "k_proj": 12, "v_proj": 8, "o_proj": 8, "lm_head": 12}
    with torch.no_grad():
        for name, weight in model.named_parameters():
            weight.mul_(scales.get(name.split(".")[-2], 1))
    torch.manual_seed(0)
    divisors = [1, 1, 1, 3, 3, 3, 3, 3]
    ids_BT = torch.randint(1, 97, (12, 1))
    with rw.extended(model, rw.LongRoPE(short_factor=divisors, long_factor=divisors, attention_factor=1)):
        mask_BT = torch.ones_like(ids_BT)
        ids_BT = model.generate(ids_BT, attention_mask=mask_BT, do_sample=True, min_new_tokens=191, max_new_tokens=191)
    return model, [ids_T.numpy() for ids_T in ids_BT]


def test_the_loss_on_text_that_was_not_trained_on_falls(teacher, job, tmp_path):
    model, texts = teacher
    options = Gradient(steps=40, facts=1, answer_weight=0.0, learning_rate=0.06)
    train(replace(job, model=model, documents=tuple(texts[:10]), validation=tuple(texts[10:])), options)
    losses = [line["validation_loss"] for line in read_log(tmp_path) if "validation_loss" in line]
    assert losses[-1] < losses[0] - 0.05


@pytest.mark.parametrize("per_layer", [False, True])
def test_a_killed_training_resumes_to_the_same_result(new_job, per_layer):
    options = replace(OPTIONS, per_layer=per_layer)
    whole = train(new_job("whole"), options)
    for stop_after in (1, 4):
        with pytest.raises(InterruptedTrainingError):
            train(new_job("killed"), options, stop_after)
    assert len(read_log(new_job("killed").folder)) == 5
    assert train(new_job("killed"), options) == whole
    assert read_log(new_job("killed").folder) == read_log(new_job("whole").folder)
    assert train(new_job("whole"), options) == whole  # a finished training is not repeated
    assert whole.is_per_layer == per_layer
    assert whole != train(new_job("other seed", seed=1), options)


def test_training_leaves_the_model_as_it_was(job):
    weights = list(job.model.parameters())
    ids_BT = torch.arange(80)[None]
    before = job.model(ids_BT).logits
    train(job)
    assert torch.equal(job.model(ids_BT).logits, before)
    assert all(weight.requires_grad and weight.grad is None for weight in weights)


def test_short_windows_learn_for_the_same_target(new_job):
    learned = train(new_job("short"), replace(OPTIONS, window=150))
    assert read_log(new_job("short").folder)[-1]["step"] == OPTIONS.steps
    assert learned.divisors != train(new_job("whole")).divisors
    assert learned.target == 192
    # Both are validated on the whole text.
    first_losses = [read_log(new_job(name).folder)[0]["validation_loss"] for name in ("short", "whole")]
    assert first_losses[0] == first_losses[1]


def test_the_loss_on_a_short_window_is_that_at_its_positions_with_weighted_keys(new_job):
    job = new_job("short")
    train(job, replace(OPTIONS, window=180, steps=1))
    rng = random.Random(f"{job.seed}/0/0")
    window = sample_window(job.documents[0], job.target, 180, FactPlanter(job.tokenizer), OPTIONS.facts, rng)
    bias_TT, is_counted_T = torch.from_numpy(window.compute_bias()), window.find_counted_tokens()
    assert is_counted_T[np.flatnonzero(np.diff(window.positions_T) > 1)[0] + 1 :].sum() > 20
    ids_BT, positions_BT = torch.from_numpy(window.ids_T)[None], torch.from_numpy(window.positions_T)[None]
    with rw.extended(job.model, job.formula), torch.no_grad():
        logits_BTV = job.model(ids_BT, position_ids=positions_BT, attention_mask=bias_TT[None, None]).logits
    nll_T = torch.nn.functional.cross_entropy(logits_BTV[0, :-1], ids_BT[0, 1:], reduction="none")
    first = read_log(job.folder)[0]
    assert first["text_nll"] == pytest.approx(float(nll_T[is_counted_T[1:]].mean()), rel=1e-5)
    assert first["answer_nll"] == pytest.approx(float(nll_T[window.is_answer_T[1:]].mean()), rel=1e-5)


def test_without_validation_texts_the_last_parameters_count(new_job, monkeypatch):
    learned = train(new_job("without", validation=()))
    assert not any("validation_loss" in line for line in read_log(new_job("without").folder))
    losses = iter(range(10, 0, -1))
    monkeypatch.setattr("ropewalk.tuning.gradient._Training._validation_loss", lambda self: float(next(losses)))
    assert learned == train(new_job("with"))


def test_the_learned_scaling_is_read_back_and_gives_the_same_logits(new_job, tmp_path):
    job = new_job("job")
    learned = train(job, replace(OPTIONS, per_layer=True))
    ids_BT = torch.arange(192)[None] % 97
    with rw.extended(job.model, learned):
        expected = job.model(ids_BT).logits
    written = learned.write(tmp_path / "scaling.json")
    with rw.extended(job.model, str(tmp_path / "scaling.json")):
        assert torch.equal(job.model(ids_BT).logits, expected)
    assert written == learned
    assert not torch.equal(job.model(ids_BT).logits, expected)


def test_another_training_and_a_damaged_checkpoint_are_refused(new_job):
    with pytest.raises(InterruptedTrainingError):
        train(new_job("a"), stop_after=2)
    with pytest.raises(InputError, match="it is of another run: method 'gradient:steps=12"):
        train(new_job("a"), replace(OPTIONS, answer_weight=0.5))
    with pytest.raises(InputError, match="it is of another run: seed 0, now 1"):
        train(new_job("a", seed=1))
    path = new_job("a").folder / "checkpoint.safetensors"
    path.write_bytes(path.read_bytes()[:-8])
    with pytest.raises(InputError, match=r"checkpoint.safetensors, which cannot be read .*; expected a new folder"):
        train(new_job("a"))


def test_training_stops_without_progress_and_keeps_the_best_parameters(job, monkeypatch):
    losses = iter([3.0, 2.0, 2.5, 2.5, 2.5, 0.0])
    monkeypatch.setattr("ropewalk.tuning.gradient._VALIDATE_EVERY", 1)
    monkeypatch.setattr("ropewalk.tuning.gradient._Training._validation_loss", lambda self: next(losses))
    noted = []
    note = TrainingLog.note_validation

    def note_divisors(self, loss, parameters):
        noted.append(parameters.divisors()[0])
        note(self, loss, parameters)

    monkeypatch.setattr(TrainingLog, "note_validation", note_divisors)
    learned = train(job)
    assert len(noted) == 5
    assert list(learned.divisors) == noted[1] != noted[4]


class ThreadAccelerator:
    """Stands for accelerate's Accelerator in one of two threads that stand for two processes."""

    def __init__(self, process_index, barrier, shared):
        self.process_index, self.num_processes, self.is_main_process = process_index, 2, process_index == 0
        self.barrier, self.shared = barrier, shared

    def reduce(self, tensor, reduction):
        assert reduction == "mean"
        self.shared[self.process_index] = tensor
        self.barrier.wait()
        mean = (self.shared[0] + self.shared[1]) / 2
        self.barrier.wait()
        return mean


def test_two_processes_learn_what_one_learns_from_twice_as_many_texts(new_job, monkeypatch):
    options = replace(OPTIONS, steps=3)
    alone = train(new_job("one"), replace(options, batch=2))
    barrier, shared, ranks = threading.Barrier(2, timeout=60), [None, None], threading.local()
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setattr(gradient, "Accelerator", lambda cpu: ThreadAccelerator(ranks.index, barrier, shared))
    jobs = [new_job("two", model=copy.deepcopy(new_job("two").model)) for _ in range(2)]

    def train_as(index):
        ranks.index = index
        return train(jobs[index], options)

    with ThreadPoolExecutor(2) as pool:
        first, second = pool.map(train_as, range(2))
    assert first == second
    assert first.divisors == pytest.approx(alone.divisors, rel=1e-4)
