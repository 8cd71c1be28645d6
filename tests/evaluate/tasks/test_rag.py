from __future__ import annotations

import json
import re

import pytest
from tests.helpers.chat import with_template
from tests.helpers.harness_tasks import write_jsonl
from tests.helpers.task_files import write_rag

from ropewalk.errors import InputError
from ropewalk.evaluate.tasks import parse_task


@pytest.mark.parametrize("chat", [False, True])
def test_prompts_have_exactly_the_length_and_one_passage_with_the_answer_at_its_depth(tmp_path, characters, chat):
    tokenizer = with_template(characters)
    samples = parse_task(f"rag:{write_rag(tmp_path)}").make_samples(tokenizer, 1300, 5, seed=0, chat=chat)
    assert [len(sample.prompt) for sample in samples] == [1300] * 3
    assert [dict(sample.metadata) for sample in samples] == [
        {"depth": 0.0, "line": 1},
        {"depth": 0.5, "line": 2},
        {"depth": 1.0, "line": 3},
    ]
    for index, sample in enumerate(samples):
        text = tokenizer.decode(sample.prompt)
        titles = [int(number) for number in re.findall(r"\n\nDocument \(Title: Town (\d+)\)", text)]
        place = titles.index(2)  # of the first passage with the answer; of the last one there may be only the beginning
        assert abs(place - sample.metadata["depth"] * (len(titles) - 1)) <= 1
        assert titles[:place] + titles[place + 1 :] == [0, 1, 3, 5, 6, 7][: len(titles) - 1], "the fifth has it, too"
        end = "?[end][assistant]Answer:" if chat else "?\nAnswer:"
        assert text.endswith(f"\n\nQuestion: Where is it in {index}{end}")
        assert text.count(f"It is the Old Lane {index}.") == 1
        assert (sample.references, sample.max_new_tokens, sample.stop) == ((f"Old Lane {index}",), 20, ("\n",))


def test_passages_with_the_answer_are_found_without_has_answer(tmp_path, characters):
    path = write_rag(tmp_path, questions=1)
    record = json.loads(path.read_text())
    record["ctxs"] = [{name: p[name] for name in ("title", "text")} for p in record["ctxs"]]
    bare = tmp_path / "bare.jsonl"
    write_jsonl(bare, record)
    prompts = [parse_task(f"rag:{file}").make_samples(characters, 1300, 1, seed=0)[0].prompt for file in (path, bare)]
    assert prompts[0] == prompts[1]


@pytest.mark.parametrize(
    ("answer", "found"),
    # normalized as in SQuAD: lower case, without punctuation and articles
    [("the OLD lane, 3!", 1), ("at Old Lane 3 or so", 1), ("Old Lane", 0), ("An Old a Lane 3", 1), ("old-lane 3", 0)],
)
def test_an_answer_that_contains_a_reference_is_found(tmp_path, characters, answer, found):
    task = parse_task(f"rag:{write_rag(tmp_path)}")
    (sample,) = task.make_samples(characters, 1300, 1, seed=0)
    assert task.score(type(sample)(0, [], ("Mill", "Old Lane 3")), answer) == {"found": found}


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"question": "a", "answers": ["b"]}', "line 2: got 'no field ctxs'; expected question, answers, and ctxs"),
        ('{"question": "a", "answers": "b", "ctxs": []}', "line 2: got 'answers is b'"),
        ('{"question": "a", "answers": ["b"], "ctxs": [{"title": "t"}]}', "line 2: got .ctxs is "),
        ('{"question": "a", "answers": ["b"], "ctxs": [{"title": "t", "text": "c"}]}', "line 2, ctxs: got .no passage"),
        ("{", "line 2: got .*; expected a JSON object"),
    ],
)
def test_an_invalid_line_is_named(tmp_path, characters, line, message):
    path = write_rag(tmp_path, questions=1)
    path.write_text(path.read_text() + line)
    with pytest.raises(InputError, match=f"^{path} {message}"):
        parse_task(f"rag:{path}").make_samples(characters, 1300, 2, seed=0)


def test_lengths_that_the_passages_do_not_reach_are_refused(tmp_path, characters):
    path = write_rag(tmp_path, questions=1)
    with pytest.raises(InputError, match=r"lengths: got 9000; expected at most [\d,]+ tokens.*\(for .*line 1\)"):
        parse_task(f"rag:{path}").make_samples(characters, 9000, 1, seed=0)
    (tmp_path / "empty.jsonl").write_text("")
    with pytest.raises(InputError, match="which is empty"):
        parse_task(f"rag:{tmp_path}/empty.jsonl").make_samples(characters, 1300, 1, seed=0)
