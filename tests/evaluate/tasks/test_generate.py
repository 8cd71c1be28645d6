from __future__ import annotations

import json

import pytest
from tests.helpers.chat import with_template
from tests.helpers.harness_tasks import character_tokenizer

from ropewalk.errors import InputError
from ropewalk.evaluate.tasks import parse_task

LINES = [
    {"context": "The rope is 300 yards long. " * 100, "input": "How long is it?", "answers": ["300 yards"]},
    {"context": "绳索由许多股纱线拧成。", "input": "绳索由什么拧成？", "answers": "纱线"},
]


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "questions.jsonl"
    path.write_text("\n".join(json.dumps(line, ensure_ascii=False) for line in LINES) + "\n\n", encoding="utf-8")
    return path


def test_prompts_are_context_and_input(file, smollm2):
    samples = parse_task(f"generate:{file},metric=f1+rouge-l").make_samples(smollm2[1], 4096, 10, seed=0)
    texts = [smollm2[1].decode(sample.prompt) for sample in samples]
    assert texts == [f"{line['context']}\n\n{line['input']}" for line in LINES]
    assert [sample.references for sample in samples] == [("300 yards",), ("纱线",)]
    assert [dict(sample.metadata) for sample in samples] == [{"line": 1, "cut": False}, {"line": 2, "cut": False}]


def test_a_context_that_is_too_long_loses_its_middle(file, smollm2):
    (sample,) = parse_task(f"generate:{file}").make_samples(smollm2[1], 200, 1, seed=0)
    text = smollm2[1].decode(sample.prompt)
    assert 190 <= len(sample.prompt) <= 200
    assert sample.metadata["cut"]
    assert text.startswith("The rope is 300")
    assert text.endswith("yards long. \n\nHow long is it?")


def test_in_a_chat_template_a_context_loses_its_middle_only(file):
    tokenizer = with_template(character_tokenizer())
    samples = parse_task(f"generate:{file}").make_samples(tokenizer, 200, 1, seed=0, chat=True)
    text = tokenizer.decode(samples[0].prompt)
    assert 190 <= len(samples[0].prompt) <= 200
    assert samples[0].metadata["cut"]
    assert text.startswith("[user]The rope is 300")
    assert text.endswith("yards long. \n\nHow long is it?[end][assistant]")


def test_answers_are_scored_and_summarized_by_each_metric(file, smollm2):
    task = parse_task(f"generate:{file},metric=f1+bleu")
    samples = task.make_samples(smollm2[1], 4096, 2, seed=0)
    answers = ["it is 300 yards", "棉花"]
    sample_results = [
        {"answer": answer, "references": list(sample.references), "scores": task.score(sample, answer)}
        for sample, answer in zip(samples, answers, strict=True)
    ]
    # {it, is, 300, yards} against {300, yards}: precision 1/2, recall 1, F1 2/3; the other has nothing in common.
    assert [outcome["scores"]["f1"] for outcome in sample_results] == [pytest.approx(2 / 3), 0]
    assert task.main_score == "f1"
    assert task.summarize(sample_results)["f1"] == pytest.approx(1 / 3)
    assert set(task.summarize(sample_results)) == {"f1", "bleu"}


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"context": "a", "input": "b"}', r"bad.jsonl line 2: got 'no field answers'; expected the fields context"),
        ('{"context": "a", ', r"bad.jsonl line 2: got .*; expected a JSON object"),
        ('["context"]', r"bad.jsonl line 2: got .*; expected a JSON object"),
        ('{"context": "\\ud800", "input": "b", "answers": "c"}', r"line 2: got .*a string with a lone surrogate"),
        ('{"context": "a", "input": "b", "answers": ["\\udfff"]}', r"line 2: got .*a string with a lone surrogate"),
        ("[" * 100_000, r"line 2: got .*nested too deeply"),
        ("9" * 5000, r"line 2: got .*; expected a JSON object"),
        ("NaN", r"line 2: got 'NaN'; expected a JSON object"),
        ('{"context": "a", "input": "b", "answers": 1e999}', r"line 2, answers: got inf; expected a string or a list"),
        ('{"context": 3, "input": "b", "answers": "c"}', "line 2: got .*; expected strings as context and input"),
        ('{"context": "a", "input": "b", "answers": []}', r"line 2, answers: got \[\]; expected a string or a list"),
    ],
)
def test_an_invalid_line_is_named(tmp_path, smollm2, line, message):
    path = tmp_path / "bad.jsonl"
    path.write_text(json.dumps(LINES[0]) + "\n" + line)
    with pytest.raises(InputError, match=message):
        parse_task(f"generate:{path}").make_samples(smollm2[1], 1000, 5, seed=0)


def test_an_answer_that_the_metric_cannot_compare_is_named_before_anything_is_generated(tmp_path, smollm2):
    path = tmp_path / "lines.jsonl"
    path.write_text('{"context": "a", "input": "b", "answers": "third"}')
    with pytest.raises(InputError, match=r"line 1, answers: got 'third'; expected .* such as Paragraph 3"):
        parse_task(f"generate:{path},metric=longbench-retrieval").make_samples(smollm2[1], 1000, 5, seed=0)


def test_a_byte_order_mark_and_pairs_of_surrogates_are_read(tmp_path, smollm2):
    path = tmp_path / "bom.jsonl"
    path.write_text('{"context": "a", "input": "b \\ud83d\\ude00", "answers": "c"}', encoding="utf-8-sig")
    (sample,) = parse_task(f"generate:{path}").make_samples(smollm2[1], 1000, 5, seed=0)
    assert smollm2[1].decode(sample.prompt).endswith("a\n\nb \U0001f600")
    assert sample.metadata == {"line": 1, "cut": False}


def test_invalid_files_and_options_are_refused(tmp_path, smollm2):
    with pytest.raises(
        InputError, match=r"generate: file: got 'no.jsonl'; expected a file that can be read \(No such file"
    ):
        parse_task("generate:no.jsonl").fingerprint()
    with pytest.raises(InputError, match=r"metric: got 'f3'"):
        parse_task("generate:no.jsonl,metric=f3")
    (tmp_path / "empty.jsonl").write_text("\n")
    with pytest.raises(InputError, match="which is empty"):
        parse_task(f"generate:{tmp_path}/empty.jsonl").make_samples(smollm2[1], 1000, 5, seed=0)
    (tmp_path / "long.jsonl").write_text(json.dumps({"context": "", "input": "word " * 500, "answers": "x"}))
    with pytest.raises(InputError, match=r"line 1: got '50\d tokens without its context'; expected at most the 100"):
        parse_task(f"generate:{tmp_path}/long.jsonl").make_samples(smollm2[1], 100, 5, seed=0)
