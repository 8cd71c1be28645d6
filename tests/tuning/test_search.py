from __future__ import annotations

import math
import random
from dataclasses import replace

import numpy as np
import pytest

import ropewalk as rw
from ropewalk.tuning import search_base
from ropewalk.tuning.base import TuneJob
from ropewalk.tuning.evolution import Evolution
from ropewalk.tuning.needle_perplexity import WORST
from ropewalk.tuning.search import Search

ROPE = rw.Rope(dim=32, base=10_000.0, original_length=1024)
PLANTED = rw.YaRN(factor=4, beta_fast=12, beta_slow=0.3, attention_factor=1.05).frequencies(ROPE)


@pytest.fixture
def job(tmp_path):
    return make_job(tmp_path)


def make_job(folder, seed=0):
    return TuneJob(None, None, ROPE, 4096, (), (), folder, seed)


def distance(scaling):
    """A cost that is zero at the planted frequencies and attention factor."""
    frequencies = scaling.frequencies(ROPE)
    logs = np.log(frequencies.inv_freq / PLANTED.inv_freq)
    return float(np.abs(logs).mean() + abs(np.log(frequencies.attention_factor / PLANTED.attention_factor)))


def try_candidates(candidates, count):
    """Return the specs of the next candidates, after telling their distance."""
    specs = []
    for _ in range(count):
        scaling = candidates.ask()
        candidates.tell(distance(scaling), seconds=2.0)
        specs.append(str(scaling))
    return specs


@pytest.mark.parametrize(("tuner", "trials", "share"), [(Search(), 24, 0.5), (Evolution(), 150, 0.5)])
def test_a_search_approaches_the_planted_optimum(job, tuner, trials, share):
    candidates = tuner.open_candidates(job, "digest")
    try_candidates(candidates, trials)
    cost, best = candidates.best()
    assert cost == distance(best)
    assert cost < share * distance(job.formula)


@pytest.mark.parametrize("tuner", [Search(), Evolution()])
def test_the_first_candidate_has_the_frequencies_of_the_formula(job, tuner):
    first = tuner.open_candidates(job, "digest").ask().frequencies(ROPE)
    expected = job.formula.frequencies(ROPE)
    assert np.allclose(first.inv_freq, expected.inv_freq, rtol=1e-12)
    assert first.attention_factor == pytest.approx(expected.attention_factor, abs=1e-3)


@pytest.mark.parametrize("tuner", [Search(), Evolution()])
def test_an_interrupted_search_continues_as_if_it_had_not_been_interrupted(tmp_path, tuner):
    folders = [tmp_path / name for name in ("whole", "interrupted")]
    for folder in folders:
        folder.mkdir()
    specs = try_candidates(tuner.open_candidates(make_job(folders[0]), "digest"), 12)
    interrupted = tuner.open_candidates(make_job(folders[1]), "digest")
    begun = try_candidates(interrupted, 10)
    interrupted.ask()  # killed while the model reads
    resumed = tuner.open_candidates(make_job(folders[1]), "digest")
    assert (resumed.num_finished, resumed.seconds) == (10, 20.0)
    assert begun + try_candidates(resumed, 2) == specs


@pytest.mark.parametrize("tuner", [Search(), Evolution()])
def test_costs_of_other_texts_are_not_used(job, tuner):
    try_candidates(tuner.open_candidates(job, "digest"), 2)
    assert tuner.open_candidates(job, "other digest").num_finished == 0
    assert tuner.open_candidates(job, "digest").num_finished == 2


@pytest.mark.parametrize(("tuner", "formulas"), [(Search(), 1), (Evolution(), 3)])
def test_another_seed_tries_other_candidates(tmp_path, tuner, formulas):
    tried = []
    for seed in (1, 2):
        folder = tmp_path / str(seed)
        folder.mkdir()
        tried.append(try_candidates(tuner.open_candidates(make_job(folder, seed), "digest"), 6))
    assert set(tried[0]) & set(tried[1]) == set(tried[0][:formulas])


def test_the_divisors_of_an_evolution_never_fall_and_stay_in_range(job):
    candidates = Evolution().open_candidates(job, "digest")
    dice = random.Random(0)
    for _ in range(100):
        divisors = np.array(candidates.ask().divisors)
        assert (np.diff(divisors) >= 0).all()
        assert divisors.min() >= 1
        assert divisors.max() <= 1.25 * 4
        candidates.tell(dice.random(), seconds=2.0)


@pytest.mark.parametrize("dim", [2, 128])
def test_every_ramp_that_is_tried_can_be_computed(tmp_path, dim):
    rope = rw.Rope(dim=dim, base=500_000.0, original_length=8192)
    candidates = Search().open_candidates(TuneJob(None, None, rope, 16_384, (), (), tmp_path, 0), "digest")
    dice = random.Random(0)
    for _ in range(5):
        assert np.isfinite(candidates.ask().frequencies(rope).inv_freq).all()
        candidates.tell(dice.random(), seconds=2.0)


@pytest.mark.parametrize(
    ("tuner", "file", "content", "message"),
    [
        (Search(), "search.sqlite3", "no database", "search.sqlite3, which cannot be read"),
        (Evolution(), "evolution-digest.jsonl", '{"cost": 1.0, "divisors": [1]}', "a line of a search (no field"),
    ],
)
def test_a_damaged_file_is_refused(job, tuner, file, content, message):
    (job.folder / file).write_text(content)
    with pytest.raises(rw.InputError) as error:
        tuner.open_candidates(job, "digest")
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_a_scaling_whose_loss_is_not_a_number_is_the_worst_and_the_search_goes_on(job, monkeypatch):
    losses = [2.0, math.nan, 1.0]
    monkeypatch.setattr(search_base, "NeedlePerplexity", lambda *_, **__: FakeObjective(losses))
    monkeypatch.setattr(search_base, "choose_window_tokens", lambda *_: 64)
    details = []
    Evolution(trials=3).run(job, lambda share, detail: details.append(detail))
    assert [detail.rpartition(" ")[2] for detail in details] == ["2.0000", "2.0000", "1.0000"]
    losses[:] = [math.nan]
    with pytest.raises(RuntimeError, match="the model's loss is not a number"):
        Evolution(trials=3).run(replace(job, seed=1), print)


class FakeObjective:
    def __init__(self, losses):
        self.losses, self.digest = iter(losses), f"{losses}"

    def cost(self, scaling):
        loss = next(self.losses)
        return WORST if math.isnan(loss) else loss
