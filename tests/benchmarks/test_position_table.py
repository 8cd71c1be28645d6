from pathlib import Path

import pytest
import torch
from benchmarks import position_retrieval, position_table
from benchmarks.common import load_result
from benchmarks.position_retrieval import Questions
from benchmarks.position_table import TableRun
from benchmarks.position_table_page import render_page
from benchmarks.position_variants import ResultRows, Variant

import ropewalk as rw

PAGE = Path(__file__).parents[2] / "docs" / "position-table.md"


def test_the_page_is_that_of_the_results():
    assert (
        PAGE.read_text()
        == render_page(load_result(position_table.RESULT), load_result(position_retrieval.RESULT)) + "\n"
    )


class CharacterTokenizer:
    """One token for each character."""

    def __call__(self, text, **options):
        return {"input_ids": [ord(character) % 97 for character in text]}


def test_rows_are_saved_as_they_come_and_not_measured_again(tiny, tmp_path):
    model, length = tiny, 64
    text = tmp_path / "text.txt"
    text.write_text("the model reads this again and again. " * 20)
    saved = []
    rows = ResultRows([], lambda rows: saved.append(len(rows)), {})
    run = TableRun(model, CharacterTokenizer(), length, rows)
    variants = [Variant("none"), Variant("dynamic-yarn", "stepped")]
    run.measure_perplexity(variants, [str(text)])
    assert saved == [1, 2, 3]
    run.measure_perplexity(variants, [str(text)])
    assert saved == [1, 2, 3]
    native, plain, _ = (row["perplexity"] for row in rows.rows)
    assert native[0] == pytest.approx(plain[0], rel=1e-5)
    ids = CharacterTokenizer()(text.read_text())["input_ids"][: 4 * length]
    (row,) = rw.perplexity_curve(model, torch.tensor(ids), [4 * length], ["none"])
    parts = torch.tensor(plain).log() * torch.tensor([length - 1, length, 2 * length])
    assert row["nll"] == pytest.approx(parts.sum().item() / (4 * length - 1), rel=1e-5)


@pytest.mark.parametrize("spec", ["yarn:factor=2", "leaky-rerope", "self-extend:group=4", "rerope"])
def test_a_question_is_read_as_in_one_call(tiny, spec):
    prompt_BT, answer_BT = torch.randint(0, 97, (3, 90)), torch.randint(0, 97, (3, 2))
    questions = Questions(tiny, 64, prompt_BT, answer_BT)
    questions.ask(Variant("near-exact"))  # what it read below the original length is read on by others
    asked = questions.ask(Variant(spec))
    ids_BT = torch.cat([prompt_BT, answer_BT], dim=1)
    with rw.extended(tiny, spec), torch.inference_mode():
        logits_BTV = tiny(ids_BT, use_cache=False).logits[:, -3:-1]
    losses_BT = torch.nn.functional.cross_entropy(logits_BTV.mT, answer_BT, reduction="none")
    assert asked["nll"] == pytest.approx(losses_BT.mean(-1).tolist(), rel=1e-4)
    assert asked["found"] == (logits_BTV.argmax(-1) == answer_BT).all(-1).tolist()
