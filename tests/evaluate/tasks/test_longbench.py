"""LongBench on documents made here; nothing is downloaded."""

from __future__ import annotations

import pytest
from tests.helpers.chat import with_template
from tests.helpers.harness_tasks import write_jsonl

import ropewalk as rw
from ropewalk.errors import InputError, UnknownNameError
from ropewalk.evaluate.tasks import parse_task

# Data set: its group, the references, an answer, its score worked by hand, and the harness's second name of the score.
SCORES = {
    "hotpotqa": ("multi", ["Eiffel Tower", "x"], "The Eiffel Tower in Paris", 2 / 3, "qa_f1_score"),  # P 2/4, R 2/2
    "multifieldqa_zh": ("single", ["北京"], "是北京", 2 / 3, "qa_f1_zh_score"),  # 是, 北京: P 1/2, R 1/1
    "gov_report": ("summarization", ["cat lay on mat"], "cat sat on mat", 3 / 4, "rouge_score"),  # P 3/4, R 3/4
    "vcsum": ("summarization", ["我们喜欢上海"], "我们喜欢北京", 2 / 3, "rouge_zh_score"),  # 我们 喜欢: P 2/3, R 2/3
    "trec": ("fewshot", ["Food"], "Food or City", 1 / 2, "classification_score"),  # two classes, one is right
    "passage_retrieval_en": ("synthetic", ["Paragraph 3"], "Paragraph 3 or 7", 1 / 2, "retrieval_score"),
    "passage_retrieval_zh": ("synthetic", ["段落2"], "段落2", 1.0, "retrieval_zh_score"),
    "passage_count": ("synthetic", ["5"], "5, 6, or 7: 5", 2 / 4, "count_score"),
    # The first line of code; 11 of 12 characters are equal: 2 * 11 / 24 = 0.917, which fuzzywuzzy rounds.
    "lcc": ("code", ["return x + 1"], "# so:\nreturn x + 2\nx", 0.92, "code_sim_score"),
}


def document(answers, **others):
    return {
        "input": "Which one is it?",
        "context": "The rope is long. " * 200,
        "answers": answers,
        "length": 3999,
        "dataset": "made here",
        "language": "en",
        "all_classes": ["Food", "City"],
        "_id": "1",
        **others,
    }


@pytest.mark.parametrize("name", SCORES)
def test_scores_equal_those_worked_by_hand(name, tokenizer, tmp_path, capfd):
    group, references, answer, expected, second_name = SCORES[name]
    write_jsonl(tmp_path / f"{name}.jsonl", document(references))
    task = parse_task(f"longbench:{name},data={tmp_path}")
    (sample,) = task.make_samples(tokenizer, 4096, 5, seed=0)
    assert sample.references == tuple(references)
    assert sample.metadata == {"group": group, "bin": "0-4k"}
    assert "The rope is long." in tokenizer.decode(sample.prompt)
    score = pytest.approx(expected, abs=1e-6)
    assert task.score(sample, answer) == {"score": score, second_name: score}
    assert capfd.readouterr() == ("", "")


def test_a_long_prompt_loses_its_middle(tokenizer, tmp_path):
    write_jsonl(tmp_path / "data" / "hotpotqa.jsonl", document(["x"]))
    task = parse_task(f"longbench:hotpotqa,data={tmp_path}")
    (whole,) = task.make_samples(tokenizer, 4096, 1, seed=0)
    (cut,) = task.make_samples(tokenizer, 132, 1, seed=0)  # 32 tokens are reserved for the answer
    assert cut.prompt == whole.prompt[:50] + whole.prompt[-50:]
    assert cut.metadata["cut"] is True
    assert "cut" not in whole.metadata
    assert tokenizer.decode(cut.prompt).endswith("Question: Which one is it?\nAnswer:")
    assert cut.max_new_tokens == 32


def test_in_a_chat_template_a_long_prompt_loses_its_middle_only(characters, tmp_path):
    write_jsonl(tmp_path / "hotpotqa.jsonl", document(["x"]))
    tokenizer = with_template(characters)
    task = parse_task(f"longbench:hotpotqa,data={tmp_path}")
    (sample,) = task.make_samples(tokenizer, 900, 1, seed=0, chat=True)
    text = tokenizer.decode(sample.prompt)
    assert len(sample.prompt) == 900 - 32, "32 tokens are reserved for the answer"
    assert text.startswith("[user]Answer the question based on the given passages.")
    assert text.endswith("Question: Which one is it?\nAnswer:[end][assistant]")


def test_longbench_e_has_a_mean_for_each_bin_of_lengths(tiny, characters, tmp_path):
    lengths = (3999, 4000, 7999, 8000)
    documents = [document(["w3"], context="w7 " * 30, length=length) for length in lengths]
    write_jsonl(tmp_path / "trec_e.jsonl", *documents)
    task = f"longbench:trec,e=true,data={tmp_path}"
    (cell,) = rw.run_evaluation(
        (tiny, characters), scalings=["none"], tasks=[task], lengths=[128], out=tmp_path / "out"
    )
    assert [result["about"]["bin"] for result in cell.sample_results] == ["0-4k", "4-8k", "4-8k", "8k+"]
    assert set(cell.summary) == {"score", "classification_score", "score 0-4k", "score 4-8k", "score 8k+"}
    results = [{**result, "scores": {"score": index}} for index, result in enumerate(cell.sample_results)]
    summary = parse_task(task).summarize(results)
    assert summary == {"score": 1.5, "score 0-4k": 0.0, "score 4-8k": 1.5, "score 8k+": 3.0}


def test_longbench_expands_to_21_data_sets_and_longbench_e_to_13():
    names = [task.task for task in parse_task("longbench").expand()]
    assert len(names) == 21
    assert names[0] == "lcc"
    e = parse_task("longbench:e=true").expand()
    assert len(e) == 13
    assert {task.task for task in e} < set(names)
    assert str(e[0]) == "longbench:task=lcc,e=true"
    with pytest.raises(UnknownNameError, match="expected lcc, "):
        parse_task("longbench:dureader,e=true").expand()  # not in LongBench-E


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", "line 2: got '{'; expected a JSON object"),
        ("[" * 100_000, "line 2: got .*nested too deeply"),
        ('{"input": "?"}', "line 2: got 'no field context, answers"),
        ("3", "line 2: got '3'; expected a JSON object"),
    ],
)
def test_an_invalid_line_is_named(line, message, tokenizer, tmp_path):
    write_jsonl(tmp_path / "hotpotqa.jsonl", document(["x"]))
    with (tmp_path / "hotpotqa.jsonl").open("a") as file:
        file.write(line)
    with pytest.raises(InputError, match=message):
        parse_task(f"longbench:hotpotqa,data={tmp_path}").make_samples(tokenizer, 4096, 2, seed=0)


@pytest.mark.parametrize(("content", "message"), [(b"", "at least one line"), (b"\xff", "in UTF-8")])
def test_an_invalid_file_is_refused(content, message, tokenizer, tmp_path):
    (tmp_path / "hotpotqa.jsonl").write_bytes(content)
    with pytest.raises(InputError, match=message):
        parse_task(f"longbench:hotpotqa,data={tmp_path}").make_samples(tokenizer, 4096, 2, seed=0)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        *[("length", value) for value in ("9", float("nan"), 10**30, None, [1], True)],
        *[("answers", value) for value in ("x", [1], None, {"a": 1})],
        *[("context", 3), ("input", None), ("all_classes", "a"), ("all_classes", [1]), ("dataset", 3)],
    ],
)
def test_a_field_of_the_wrong_type_is_one_line(field, value, tokenizer, tmp_path):
    write_jsonl(tmp_path / "hotpotqa.jsonl", document(["x"]), {**document(["x"]), field: value})
    with pytest.raises(InputError, match=r"line 2: got [^\n]*$"):
        parse_task(f"longbench:hotpotqa,data={tmp_path}").make_samples(tokenizer, 4096, 2, seed=0)


def test_fields_that_longbench_lacks_are_ignored(tokenizer, tmp_path):
    """Their types may differ between documents, which a table of documents could not hold."""
    documents = [{**document(["x"]), "extra": value} for value in (1, "a", None)]
    write_jsonl(tmp_path / "hotpotqa.jsonl", *documents)
    samples = parse_task(f"longbench:hotpotqa,data={tmp_path}").make_samples(tokenizer, 4096, 3, seed=0)
    assert len(samples) == 3


def test_missing_data_is_named(tokenizer, tmp_path, monkeypatch):
    import datasets

    with pytest.raises(InputError, match=r"a folder with hotpotqa.jsonl, or data/hotpotqa.jsonl"):
        parse_task(f"longbench:hotpotqa,data={tmp_path}").fingerprint()

    def offline(*_, **__):
        raise ConnectionError("no network")

    monkeypatch.setattr(datasets, "load_dataset", offline)
    with pytest.raises(InputError, match=r"longbench:data=DIR with DIR/hotpotqa.jsonl of .*no network"):
        parse_task("longbench:hotpotqa").make_samples(tokenizer, 4096, 2, seed=0)


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("longbench:hotpot", r"longbench: task: .*did you mean hotpotqa"),
        ("longbench:e=maybe", r"longbench: e: got 'maybe'; expected true or false"),
    ],
)
def test_invalid_options_are_refused(spec, message):
    with pytest.raises(InputError, match=message):
        parse_task(spec).expand()
