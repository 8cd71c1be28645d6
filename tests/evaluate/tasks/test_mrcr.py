from __future__ import annotations

import re

import pytest
from tests.helpers.chat import with_template
from tests.helpers.task_files import conversation, write_mrcr

from ropewalk.errors import InputError
from ropewalk.evaluate.tasks import parse_task

MESSAGES, REPLY = conversation()


@pytest.mark.parametrize("chat", [False, True])
@pytest.mark.parametrize("length", [800, 1234, 2000])
def test_prompts_have_exactly_the_length_and_keep_the_requests(tmp_path, characters, length, chat):
    tokenizer = with_template(characters)
    task = parse_task(f"mrcr:{write_mrcr(tmp_path)}")
    samples = task.make_samples(tokenizer, length, 5, seed=0, chat=chat)
    assert [len(sample.prompt) for sample in samples] == [length] * 2
    for sample in samples:
        text = tokenizer.decode(sample.prompt)
        if chat:
            parts = re.findall(r"(?s)\[(user|assistant)\](.*?)\[end\]", text)
            assert text.endswith("nothing else.[end][assistant]")
        else:
            parts = [(role.lower(), said) for role, said in re.findall(r"(?s)(User|Assistant): (.*?)\n\n", text)]
            assert text.endswith("nothing else.\n\nAssistant:")
        assert parts[0][1] == MESSAGES[0]["content"]
        assert [said for _, said in parts if "knots" in said] == [
            *("Write a tale about knots.", "The first tale of knots. It is short."),
            *("Write a tale about knots.", REPLY, MESSAGES[-1]["content"]),
        ]
        whole = {message["content"] for message in MESSAGES}
        shortened = [said for _, said in parts if said not in whole]
        assert len(shortened) <= 1, "one reply loses its end"
        position = text.index(REPLY) / len(text)
        assert sample.metadata["depth"] == pytest.approx(position, abs=0.1)
        assert sample.references == (f"Xk3{REPLY}",)
        assert sample.max_new_tokens == len(f"Xk3{REPLY}") + 32


def test_an_introduction_before_the_first_request_is_kept_with_all_requests(tmp_path, characters):
    request, reply = "Write a tale about knots.", "The tale of an introduction."
    first = [
        {"role": "user", "content": f"This is an introduction.\n\n{request}"},
        {"role": "assistant", "content": reply},
    ]
    task = parse_task(f"mrcr:{write_mrcr(tmp_path, rows=1, prompt=[*first, *MESSAGES], answer=f'Xk3{reply}')}")
    (sample,) = task.make_samples(characters, 700, 1, seed=0)
    text = characters.decode(sample.prompt)
    assert text.startswith(f"User: {first[0]['content']}\n\nAssistant: {reply}\n\n")
    assert text.count(request) == 3
    assert sample.metadata["depth"] == pytest.approx(50 / 700, abs=0.05)


def test_a_conversation_of_the_length_is_unchanged(tmp_path, characters):
    tokenizer = with_template(characters)
    whole = tokenizer.apply_chat_template(MESSAGES, add_generation_prompt=True)["input_ids"]
    task = parse_task(f"mrcr:{write_mrcr(tmp_path, rows=1)}")
    assert task.make_samples(tokenizer, len(whole), 1, seed=0, chat=True)[0].prompt == whole
    for length in (200, len(whole) + 1):
        expected = rf"tokens that a conversation of .* can have: [3-6]\d\d to {len(whole):,}$"
        with pytest.raises(InputError, match=f"lengths: got {length}; expected {expected}"):
            task.make_samples(tokenizer, length, 1, seed=0, chat=True)


def test_conversations_that_cannot_have_the_length_are_left_out(tmp_path, characters):
    rows = [write_mrcr(tmp_path, rows=1).read_text()]
    for prompt in (MESSAGES[18:], [{**MESSAGES[0], "content": "Long. " * 200}, *MESSAGES[1:]]):
        rows.append(write_mrcr(tmp_path, rows=1, prompt=prompt).read_text())
    (tmp_path / "mixed.jsonl").write_text("".join([rows[1], rows[0], rows[2], rows[0]]))
    samples = parse_task(f"mrcr:{tmp_path}/mixed.jsonl").make_samples(characters, 1500, 9, seed=0)
    assert [(sample.index, len(sample.prompt)) for sample in samples] == [(0, 1500), (1, 1500)]


@pytest.mark.parametrize(
    ("answer", "match"),
    [
        ("Xk3abcd", 1.0),
        (" Xk3abcd", 1.0),  # after `Assistant:` in plain text
        ("abcd", 0.0),  # without the random string
        ("xk3abcd", 0.0),
        ("Xk3abxd", 2 * 3 / 8),  # ab and d of 4 and 4 characters
        ("Xk3ab", 2 * 2 / 6),
        ("Xk3", 0.0),
    ],
)
def test_the_score_is_the_ratio_of_matching_characters_after_the_random_string(tmp_path, characters, answer, match):
    task = parse_task(f"mrcr:{write_mrcr(tmp_path, rows=1)}")
    (sample,) = task.make_samples(characters, 1000, 1, seed=0)
    sample = type(sample)(0, [], ("Xk3abcd",), task_data=sample.task_data)
    assert task.score(sample, answer) == {"match": pytest.approx(match)}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"prompt": [{"role": "user"}]}, r"line 1: got .prompt is \[\{"),
        ({"prompt": [{"role": "assistant", "content": "a"}]}, "line 1: got .prompt is "),
        ({"prompt": 3}, "line 1: got 'prompt is 3'; expected prompt, answer and random_string_to_prepend"),
        ({"answer": None}, "line 1: got 'answer is None'"),
        ({"answer": "Xk3 other"}, "line 1, answer: got 'Xk3 other'; expected random_string_to_prepend, then one of"),
    ],
)
def test_an_invalid_row_is_named(tmp_path, characters, changes, message):
    path = write_mrcr(tmp_path, **changes)
    with pytest.raises(InputError, match=f"^{path} {message}"):
        parse_task(f"mrcr:{path}").make_samples(characters, 1000, 1, seed=0)
