from pathlib import Path

import pytest
import torch
from benchmarks.common import load_result
from benchmarks.position_table import RESULT, TableRun, Variant
from benchmarks.position_table_page import render_page

import ropewalk as rw

PAGE = Path(__file__).parents[2] / "docs" / "position-table.md"


def test_the_page_is_that_of_the_results():
    assert PAGE.read_text() == render_page(load_result(RESULT)) + "\n"


class CharacterTokenizer:
    """One token for each character."""

    def __call__(self, text, **options):
        return {"input_ids": [ord(character) % 97 for character in text]}


def test_rows_are_saved_as_they_come_and_not_measured_again(tiny, tmp_path):
    model, length = tiny, 64
    text = tmp_path / "text.txt"
    text.write_text("the model reads this again and again. " * 20)
    saved = []
    run = TableRun(model, CharacterTokenizer(), length, [], lambda rows: saved.append(len(rows)))
    variants = [Variant("none"), Variant("dynamic-yarn", "stepped")]
    run.measure_perplexity(variants, [str(text)])
    assert saved == [1, 2, 3]
    run.measure_perplexity(variants, [str(text)])
    assert saved == [1, 2, 3]
    native, plain, _ = (row["perplexity"] for row in run.rows)
    assert native[0] == pytest.approx(plain[0], rel=1e-5)
    ids = CharacterTokenizer()(text.read_text())["input_ids"][: 4 * length]
    (row,) = rw.perplexity_curve(model, torch.tensor(ids), [4 * length], ["none"])
    parts = torch.tensor(plain).log() * torch.tensor([length - 1, length, 2 * length])
    assert row["nll"] == pytest.approx(parts.sum().item() / (4 * length - 1), rel=1e-5)
