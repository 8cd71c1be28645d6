from __future__ import annotations

import pytest
from tests.helpers.chat import with_template
from tests.helpers.task_files import write_longbench_v2

import ropewalk as rw
from ropewalk.errors import InputError
from ropewalk.evaluate.tasks import parse_task


@pytest.mark.parametrize("chat", [False, True])
def test_a_context_that_is_too_long_loses_its_middle_only(tmp_path, characters, chat):
    tokenizer = with_template(characters)
    task = parse_task(f"longbench-v2:{write_longbench_v2(tmp_path)}")
    for sample in task.make_samples(tokenizer, 1000, 3, seed=0, chat=chat):
        text = tokenizer.decode(sample.prompt)
        # In a chat no space precedes the letter.
        assert len(sample.prompt) == 1000 - chat
        assert sample.metadata["cut"]
        assert text.startswith("[user]Please" if chat else "Please")
        assert f"<text>\nTale {sample.index}. " in text
        assert f"question: Which knot is in tale {sample.index}?\nChoices:\n(A) the rope knot\n" in text
        assert text.endswith("Answer:[end][assistant]A" if chat else "Answer: A")
    (whole, *_) = task.make_samples(tokenizer, 8000, 1, seed=0, chat=chat)
    assert not whole.metadata["cut"]


def test_both_formats_of_the_file_give_the_same_samples(tmp_path, characters):
    files = [write_longbench_v2(tmp_path, as_list) for as_list in (True, False)]
    samples = [parse_task(f"longbench-v2:{file}").make_samples(characters, 900, 2, seed=0) for file in files]
    assert [[(s.prompt, s.references) for s in made] for made in samples[:1]] == [
        [(s.prompt, s.references) for s in made] for made in samples[1:]
    ]
    assert [sample.references for sample in samples[0]] == [("A",), ("C",)]


def test_the_most_likely_letter_is_scored_for_each_kind_of_question(tmp_path, characters):
    task = parse_task(f"longbench-v2:{write_longbench_v2(tmp_path)}")
    samples = task.make_samples(characters, 900, 3, seed=0)
    # log-likelihoods of A, B, C and D, and whether each is the greedy choice; the answers are A, C and D
    answers = [
        "[[-1, true], [-2, false], [-3, false], [-4, false]]",
        "[[-2, false], [-1, true], [-3, false], [-4, false]]",
        "[[-9, false], [-8, false], [-7, false], [-6, false]]",
    ]
    scores = [task.score(sample, answer) for sample, answer in zip(samples, answers, strict=True)]
    assert [score["acc"] for score in scores] == [1.0, 0.0, 1.0]
    results = [{"scores": score, "about": sample.metadata} for score, sample in zip(scores, samples, strict=True)]
    assert task.summarize(results) == {
        "acc": pytest.approx(2 / 3),
        **{"acc easy": 1.0, "acc hard": 0.5, "acc short": 0.5, "acc long": 1.0},
    }


def test_likelihoods_are_those_of_the_model(tmp_path, tiny, characters):
    """The prompt, truncated here, is what the harness reads: it drops nothing of it."""
    import torch

    path = write_longbench_v2(tmp_path)
    task = f"longbench-v2:{path}"
    (cell,) = rw.run_evaluation(
        (tiny, characters), scalings=["none"], tasks=[task], lengths=[600], samples=1, out=tmp_path / "out"
    )
    (sample,) = parse_task(task).make_samples(characters, 600, 1, seed=0)
    letters = characters("ABCD")["input_ids"]
    with torch.inference_mode():
        logits = tiny(torch.tensor([sample.prompt[:-1]])).logits[0, -1]
    best = logits[letters].argmax().item()
    assert cell.summary["acc"] == float(best == 0)
    assert cell.sample_results[0]["tokens"] == 600


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"choice_C": "del"}, "item 1: got 'no field choice_C'; expected the fields of LongBench v2's data.json"),
        ({"answer": "E"}, "item 1: got 'answer is E'"),
        ({"context": 3}, "item 1: got 'context is 3'"),
    ],
)
def test_an_invalid_question_is_named(tmp_path, characters, changes, message):
    path = write_longbench_v2(tmp_path, **changes)
    with pytest.raises(InputError, match=f"^{path} {message}"):
        parse_task(f"longbench-v2:{path}").make_samples(characters, 900, 1, seed=0)
