from __future__ import annotations

import pytest
import torch

from ropewalk.errors import InputError
from ropewalk.evaluate.curve import perplexity_curve
from ropewalk.evaluate.tasks import parse_task
from ropewalk.evaluate.text_generator import TextGenerator


class LetterTokenizer:
    """A tokenizer with one token per letter that puts token 1 before every text."""

    def __call__(self, text, add_special_tokens=True, verbose=True):
        return {"input_ids": [1] * add_special_tokens + [ord(letter) % 90 + 2 for letter in text]}


@pytest.fixture
def task(tmp_path):
    (tmp_path / "text.txt").write_text("".join(chr(97 + i * i % 26) for i in range(200)))
    return parse_task(f"perplexity:{tmp_path}/text.txt")


def test_every_window_begins_with_the_special_tokens_of_a_text(task):
    samples = task.make_samples(LetterTokenizer(), 50, 4, seed=0)
    assert [sample.metadata["start"] for sample in samples] == [0, 50, 101, 151]
    assert all(len(sample.prompt) == 50 and sample.prompt[0] == 1 for sample in samples)
    assert all(1 not in sample.prompt[1:] for sample in samples)


def test_equal_windows_are_used_once(task):
    assert [sample.metadata["start"] for sample in task.make_samples(LetterTokenizer(), 200, 6, seed=0)] == [0, 1]
    assert len(task.make_samples(LetterTokenizer(), 201, 6, seed=0)) == 1
    with pytest.raises(InputError, match="from 2 to the 201 tokens of the text"):
        task.make_samples(LetterTokenizer(), 202, 6, seed=0)


def test_losses_equal_those_of_the_curve_and_the_summary_is_the_perplexity_of_their_mean(task, tiny):
    samples = task.make_samples(LetterTokenizer(), 50, 2, seed=0)
    sample_results = [
        {"scores": task.score(sample, answer)}
        for sample, answer in task.generate_answers(TextGenerator(tiny, None), samples)
    ]
    losses = [perplexity_curve(tiny, sample.prompt, [50])[0]["nll"] for sample in samples]
    assert [outcome["scores"]["nll"] for outcome in sample_results] == losses
    expected = torch.tensor(losses, dtype=torch.float64).mean().exp().item()
    assert task.summarize(sample_results)["ppl"] == pytest.approx(expected)
