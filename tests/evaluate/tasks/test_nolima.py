from __future__ import annotations

import json

import pytest
from tests.helpers.chat import with_template
from tests.helpers.task_files import random_text, write_needles

from ropewalk.errors import InputError
from ropewalk.evaluate.tasks import parse_task

TEXT = random_text(7, 200)


@pytest.fixture
def spec(tmp_path):
    (tmp_path / "book.txt").write_text(TEXT)
    return f"nolima:{write_needles(tmp_path)},text={tmp_path}/book.txt"


@pytest.mark.parametrize("chat", [False, True])
def test_prompts_have_exactly_the_length_and_the_needle_at_its_depth(spec, characters, chat):
    tokenizer = with_template(characters)
    samples = parse_task(spec).make_samples(tokenizer, 1000, 10, seed=0, chat=chat)
    assert [len(sample.prompt) for sample in samples] == [1000] * 10
    assert [sample.metadata["depth"] for sample in samples] == [round(index / 9, 4) for index in range(10)]
    names = {"0401_T1_onehop", "0401_T1_twohop", "0401_T2_onehop", "0401_T2_twohop", "0402_T9_onehop"}
    assert {sample.metadata["needle"] for sample in samples} == names, "each needle is used twice"
    for sample in samples:
        text = tokenizer.decode(sample.prompt)
        assert text.endswith("[end][assistant]Answer:" if chat else "? Answer:")
        needle = (
            "never eats walnuts" if "0402" in sample.metadata["needle"] else f"In truth, {sample.references[0]} sleeps"
        )
        # The text begins after 80 characters; a sentence has about 50.
        first, last = text.index(TEXT[:20]), text.rindex("The text may answer")
        assert text.index(needle) - first == pytest.approx(sample.metadata["depth"] * (last - first), abs=120)


def test_placeholders_are_filled(spec, characters):
    samples = parse_task(spec).make_samples(characters, 1000, 5, seed=0)
    texts = {sample.metadata["needle"]: characters.decode(sample.prompt) for sample in samples}
    by_name = {sample.metadata["needle"]: sample.references for sample in samples}
    assert f"In truth, {by_name['0401_T2_twohop'][0]} sleeps beside a tower." in texts["0401_T2_twohop"]
    assert "Question: Who has been to the land of Paris?" in texts["0401_T2_twohop"]
    assert "The baker never eats walnuts." in texts["0402_T9_onehop"]
    assert by_name["0402_T9_onehop"] == ("nuts", "walnut")
    assert {name for name, *_ in by_name.values()} <= {"Yuri", "Ines", "nuts"}
    assert parse_task(spec).make_samples(characters, 1000, 5, seed=0) == samples


def test_the_template_of_the_file_is_used(tmp_path, characters):
    path = write_needles(tmp_path, task_template="Book: {haystack}\nAsked: {question}\nSay.")
    for sample in parse_task(f"nolima:{path}").make_samples(characters, 900, 5, seed=0):
        text = characters.decode(sample.prompt)
        if "0401" in sample.metadata["needle"]:
            assert text.startswith("Book: ")
            assert text.endswith("?\nSay.")
            assert sample.stop == ()


@pytest.mark.parametrize(("answer", "found"), [(" Yuri.", 1), ("It is Yuri, not Ines", 1), ("yuri", 0), ("", 0)])
def test_an_answer_that_contains_the_name_is_found(spec, characters, answer, found):
    sample = parse_task(spec).make_samples(characters, 1000, 1, seed=0)[0]
    assert parse_task(spec).score(type(sample)(0, [], ("Yuri",)), answer) == {"found": found}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"needle": "del"}, "item 1: got 'no field needle'; expected an item of NoLiMa's needle_set.json"),
        ({"questions": ["a"]}, r"item 1: got .questions is \['a'\]"),
        ({"tests": {"T1": {}}}, "item 1: got 'no field input_args'"),
        ({"character_set": []}, r"item 1, test T1: got \[\]; expected a character_set for {CHAR}"),
        ({"needle": "No name."}, r"item 1, test T1: got \[\]; expected gold_answers, a list of texts"),
        ({"task_template": "{question}"}, "item 1: got 'task_template has no {haystack} with {question} after it'"),
        ({"distractors": {"onehop": "x"}}, "item 1: got 'distractors'; expected a needle set without them"),
    ],
)
def test_an_invalid_item_is_named(tmp_path, characters, changes, message):
    path = write_needles(tmp_path, **changes)
    with pytest.raises(InputError, match=f"^{path} {message}"):
        parse_task(f"nolima:{path}").make_samples(characters, 1000, 1, seed=0)


def test_invalid_files_are_refused(tmp_path, characters):
    with pytest.raises(InputError, match=r"nolima: needles: got 'no.json'; expected a file that can be read"):
        parse_task("nolima:no.json").fingerprint()
    for content in ("[{", "[]", "[3]"):
        (tmp_path / "bad.json").write_text(content)
        with pytest.raises(InputError, match=r"bad\.json"):
            parse_task(f"nolima:{tmp_path}/bad.json").make_samples(characters, 1000, 1, seed=0)


def test_the_fingerprint_follows_needles_and_text(spec, tmp_path):
    before = parse_task(spec).fingerprint()
    (tmp_path / "book.txt").write_text(TEXT + " More.")
    after = parse_task(spec).fingerprint()
    assert (before["needles"], before["text"]) == (after["needles"], before["text"])
    assert before["text"] != after["text"]
    items = json.loads((tmp_path / "needle_set.json").read_text())
    (tmp_path / "needle_set.json").write_text(json.dumps(items[:1]))
    assert parse_task(spec).fingerprint()["needles"] != before["needles"]
