"""Tasks that read their questions from a file: an evaluation continues, and its report shows them."""

from __future__ import annotations

import copy
import json
import random

import pytest
from tests.helpers.chat import with_template
from tests.helpers.task_files import write_longbench_v2, write_mrcr, write_needles, write_rag

from ropewalk.errors import InputError
from ropewalk.evaluate.evaluation import Evaluation
from ropewalk.evaluate.tasks import parse_task
from ropewalk.report.page import write_report

WRITERS = {"nolima": write_needles, "rag": write_rag, "mrcr": write_mrcr, "longbench-v2": write_longbench_v2}
JUNK = [None, True, -1, 1e300, "", "x", "\ud800", [], [[]], {}, {"a": 1}, ["x"], "{1}{haystack}"]


def places(value, path=()):
    """Yield the path of each value inside a JSON document."""
    children = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, child in children:
        yield (*path, key)
        yield from places(child, (*path, key))


@pytest.mark.parametrize("name", WRITERS)
def test_a_file_with_a_wrong_value_gives_samples_or_one_line(name, characters, tmp_path):
    text = WRITERS[name](tmp_path).read_text(encoding="utf-8")
    records = json.loads(text) if text.startswith("[") else [json.loads(line) for line in text.splitlines()]
    dice = random.Random(0)
    messages = []
    for _ in range(40):
        changed = copy.deepcopy(records)
        *path, last = dice.choice(list(places(changed)))
        parent = changed
        for key in path:
            parent = parent[key]
        parent[last] = dice.choice(JUNK)
        file = tmp_path / "changed.json"
        file.write_text(json.dumps(changed))
        try:
            samples = parse_task(f"{name}:{file}").make_samples(characters, 900, 2, seed=0)
        except InputError as error:
            messages.append(str(error))
        else:
            assert all(899 <= len(sample.prompt) <= 900 for sample in samples)
    assert len(messages) > 5
    assert [text for text in messages if "\n" in text] == []
    assert [text for text in messages if not ("changed.json" in text or text.startswith("lengths: "))] == []


def test_an_interrupted_evaluation_continues_and_is_reported(tiny, characters, tmp_path):
    tasks = [
        f"nolima:{write_needles(tmp_path)}",
        f"rag:{write_rag(tmp_path)}",
        f"mrcr:{write_mrcr(tmp_path)}",
        f"longbench-v2:{write_longbench_v2(tmp_path)}",
    ]
    tokenizer = with_template(characters)

    def evaluate(on_result=None):
        evaluation = Evaluation((tiny, tokenizer), ["none"], tasks, [900], tmp_path / "out", samples=2)
        with evaluation.store:
            evaluation.run(on_result=on_result)
            return evaluation.results()

    answered = []

    def record(cell, result):
        answered.append(cell.task.name)
        if len(answered) == 4:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        evaluate(record)
    assert answered == ["nolima", "nolima", "nolima", "rag"], "two samples, a summary, and a sample"
    cells = evaluate(lambda cell, result: answered.append(cell.task.name))
    assert answered[4:] == ["rag", "rag", "mrcr", "mrcr", "mrcr", "longbench-v2", "longbench-v2", "longbench-v2"]
    assert [cell.description["chat"] for cell in cells] == [True] * 4
    assert all(0 <= cell.summary[cell.description["main"]] <= 1 for cell in cells)
    assert all(899 <= result["tokens"] <= 900 for cell in cells for result in cell.sample_results)
    with Evaluation((tiny, tokenizer), ["none"], tasks, [900], tmp_path / "out", samples=2).store as store:
        page, *_ = write_report(store, tmp_path / "report.html")
    text = page.read_text(encoding="utf-8")
    assert all(f"{name}:" in text for name in ("nolima", "rag", "mrcr", "longbench-v2"))
