from __future__ import annotations

import numpy as np
import pytest
import torch
from tests.helpers.harness_tasks import character_tokenizer
from tests.helpers.plain_nll import plain_nll

import ropewalk as rw
from ropewalk.tuning.base import TuneJob
from ropewalk.tuning.evolution import Evolution
from ropewalk.tuning.needle_perplexity import NeedlePerplexity
from ropewalk.tuning.search import Search

TARGET = 512
TEXT = "The rope is long. It was laid in the walk by the sea. " * 30


@pytest.fixture
def job(tiny, tmp_path):
    tokenizer = character_tokenizer()
    document = np.array(tokenizer(TEXT)["input_ids"])
    rope = rw.Rope(dim=16, base=10_000.0, original_length=64)
    return TuneJob(tiny, tokenizer, rope, TARGET, (document,), (), tmp_path)


def needle_perplexity(job, **options):
    return NeedlePerplexity(job, **{"texts": 2, "facts": 2, "window": TARGET, "text_weight": 0.5, **options})


def expected_cost(job, needle, losses_of):
    """The mean loss on all answers plus half of that on all text, from the losses on each window."""
    answers, text = [], []
    with rw.extended(job.model, job.formula):
        for window in needle._windows:
            nll_T = losses_of(window)
            answers += nll_T[window.is_answer_T[1:]].tolist()
            text += nll_T[window.find_counted_tokens()[1:]].tolist()
    assert len(answers) > 5
    assert len(text) > 300
    return np.mean(answers) + 0.5 * np.mean(text)


def test_the_cost_is_that_of_the_answers_and_of_the_text(job):
    needle = needle_perplexity(job)
    expected = expected_cost(job, needle, lambda window: plain_nll(job.model, window.ids_T.tolist()))
    assert needle.cost(job.formula) == pytest.approx(expected, rel=1e-5)


def test_a_short_window_is_read_at_its_positions_in_the_long_text(job, monkeypatch):
    monkeypatch.setattr("ropewalk.tuning.windows._NEAR_PAST", 8)  # so that most of the text counts
    needle = needle_perplexity(job, window=400)

    def losses_of(window):
        # A mask of its own: it has the weights of the keys, and no text is split at the jumps.
        mask = torch.from_numpy(window.compute_bias())[None, None]
        ids_BT, positions_BT = torch.from_numpy(window.ids_T)[None], torch.from_numpy(window.positions_T)[None]
        with torch.inference_mode():
            logits = job.model(ids_BT, position_ids=positions_BT, attention_mask=mask, use_cache=False).logits
        return torch.nn.functional.cross_entropy(logits[0, :-1].double(), ids_BT[0, 1:], reduction="none").numpy()

    assert max(window.positions_T[-1] for window in needle._windows) == TARGET - 1
    assert needle.cost(job.formula) == pytest.approx(expected_cost(job, needle, losses_of), rel=1e-5)


def test_short_windows_are_refused_under_flash_attention(job, monkeypatch):
    monkeypatch.setattr(job.model.config, "_attn_implementation_internal", "flash_attention_2")
    with pytest.raises(rw.InputError, match="window: got 300; expected the target, 512 tokens"):
        needle_perplexity(job, window=300)
    needle_perplexity(job)


def test_other_texts_and_another_weight_have_another_digest(job):
    digests = [
        needle_perplexity(job, **options).digest
        for options in ({}, {"facts": 3}, {"text_weight": 1.0}, {"window": 300})
    ]
    assert len(set(digests)) == 4
    assert needle_perplexity(job).digest == digests[0]


@pytest.mark.parametrize("tuner", [Search, Evolution])
def test_a_search_on_a_model_returns_what_has_the_lowest_cost_and_continues(job, tuner, monkeypatch):
    options = {"texts": 1, "facts": 2, "window": TARGET}
    shares = []
    best = tuner(trials=4, **options).run(job, lambda share, detail: shares.append(share))
    assert shares == [0.25, 0.5, 0.75, 1.0]
    costs = needle_perplexity(job, texts=1, text_weight=1.0)
    assert costs.cost(best) <= costs.cost(job.formula)
    monkeypatch.setattr("ropewalk.tuning.needle_perplexity.compute_nll", None)
    assert tuner(trials=4, **options).run(job, lambda *_: None) == best
    assert rw.models.extend.extension_of(job.model) is None


def test_a_search_ends_after_its_minutes_but_not_before_the_formula_is_measured(job):
    details = []
    tuner = Search(trials=1000, minutes=1e-6, texts=1, facts=2, window=TARGET)
    tuner.run(job, lambda share, detail: details.append(detail))
    assert details[-1].startswith("trial 1 of 1000, lowest cost")


@pytest.mark.parametrize("options", [{"trials": 0}, {"minutes": 0}, {"texts": 0}, {"text_weight": -1}])
def test_options_out_of_range_are_refused(options):
    with pytest.raises(rw.InputError, match=f"search: {next(iter(options))}: got"):
        Search(**options)
