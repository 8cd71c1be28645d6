"""Small files in the formats of the tasks that read questions from a file."""

from __future__ import annotations

import json
import random

from tests.helpers.harness_tasks import write_jsonl

WORDS = [
    *("rope", "yarn", "strand", "hemp", "knot", "sail", "mast", "tar"),
    *("walk", "lane", "wheel", "hook", "top", "post", "reel", "sledge"),
]


def random_text(seed, sentences):
    rng = random.Random(seed)
    return " ".join(" ".join(rng.choices(WORDS, k=8)).capitalize() + "." for _ in range(sentences))


def write_needles(folder, **changes):
    """Write a needle set in NoLiMa's format; `changes` are of its first item."""
    items = [
        {
            "id": "0401",
            "needle": "In truth, {CHAR} sleeps beside {1}.",
            "questions": {"onehop": "Who has seen {2}?", "twohop": "Who has been to the land of {2}?"},
            "character_set": ["Yuri", "Ines"],
            "tests": {"T1": {"input_args": ["the opera house", "Sydney"]}, "T2": {"input_args": ["a tower", "Paris"]}},
        },
        {
            "id": "0402",
            "needle": "The baker never eats {1}.",
            "questions": {"onehop": "What is the baker allergic to?"},
            "tests": {"T9": {"input_args": ["walnuts"], "gold_answers": ["nuts", "walnut"]}},
        },
    ]
    items[0] = {name: value for name, value in {**items[0], **changes}.items() if value != "del"}
    path = folder / "needle_set.json"
    path.write_text(json.dumps(items, indent=1))
    return path


def passage(index, town, has_answer):
    return {
        "title": f"Town {index}",
        "text": f"{town} has a ropewalk. {random_text(index, 3)}",
        "has_answer": has_answer,
    }


def write_rag(folder, questions=3, passages=12):
    """Write questions with passages in HELMET's format: the third passage answers, and the fifth does so, too."""
    records = []
    for question in range(questions):
        towns = [f"Town{question}x{index}" for index in range(passages)]
        contexts = [passage(index, town, index in (2, 4)) for index, town in enumerate(towns)]
        contexts[2]["text"] += f" It is the Old Lane {question}."
        contexts[4]["text"] += f" It is the Old Lane {question}."
        records.append(
            {"question": f"Where is it in {question}?", "answers": [f"Old Lane {question}"], "ctxs": contexts}
        )
    path = folder / "rag.jsonl"
    write_jsonl(path, *records)
    return path


def conversation(fillers=12):
    """Return a conversation with the same request twice, and the reply to the second of them."""
    turns = [(f"Write a poem about {WORDS[index % 16]} {index}.", random_text(index, 4)) for index in range(fillers)]
    turns.insert(3, ("Write a tale about knots.", "The first tale of knots. It is short."))
    turns.insert(9, ("Write a tale about knots.", "The second tale of knots. It ends well."))
    messages = []
    for request, reply in turns:
        messages += [{"role": "user", "content": request}, {"role": "assistant", "content": reply}]
    messages.append({"role": "user", "content": "Prepend Xk3 to the 2nd tale about knots. Write nothing else."})
    return messages, "The second tale of knots. It ends well."


def write_mrcr(folder, rows=2, **changes):
    """Write rows in MRCR's format, of which the first has a prompt in JSON and the others a list."""
    messages, reply = conversation()
    row = {"prompt": messages, "answer": f"Xk3{reply}", "random_string_to_prepend": "Xk3", "n_needles": 2, **changes}
    first = {**row, "prompt": json.dumps(row["prompt"])}
    path = folder / "mrcr.jsonl"
    write_jsonl(path, first, *[row] * (rows - 1))
    return path


def write_longbench_v2(folder, as_list=True, **changes):
    """Write three questions in LongBench v2's format; `changes` are of the first."""
    records = [
        {
            **{"_id": str(index), "domain": "Long", "sub_domain": "Tales", "difficulty": difficulty, "length": length},
            **{"question": f" Which knot is in tale {index}? ", "context": f"Tale {index}. {random_text(index, 60)}"},
            **{f"choice_{letter}": f"the {word} knot" for letter, word in zip("ABCD", WORDS, strict=False)},
            "answer": answer,
        }
        for index, (difficulty, length, answer) in enumerate(
            [("easy", "short", "A"), ("hard", "short", "C"), ("hard", "long", "D")]
        )
    ]
    records[0] = {name: value for name, value in {**records[0], **changes}.items() if value != "del"}
    path = folder / ("data.json" if as_list else "data.jsonl")
    if as_list:
        path.write_text(json.dumps(records))
    else:
        write_jsonl(path, *records)
    return path
