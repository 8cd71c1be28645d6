"""Tasks that read their questions from a file: an evaluation continues, and its report shows them."""

from __future__ import annotations

import pytest
from tests.helpers.chat import with_template
from tests.helpers.task_files import write_longbench_v2, write_mrcr, write_needles, write_rag

from ropewalk.evaluate.evaluation import Evaluation
from ropewalk.report.page import write_report


def test_an_interrupted_evaluation_continues_and_is_reported(tiny, characters, tmp_path):
    tasks = [
        f"nolima:{write_needles(tmp_path)}",
        f"rag:{write_rag(tmp_path)}",
        f"mrcr:{write_mrcr(tmp_path)}",
        f"longbench_v2:{write_longbench_v2(tmp_path)}",
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
