from __future__ import annotations

import math

import pytest
from tests.helpers.fake_results import describe_cell, make_sample, write_store

from ropewalk.report.page import write_report
from ropewalk.report.short_and_effective import list_effective_lengths, list_short_costs


@pytest.fixture
def make_cells(tmp_path):
    """Return the cells of a stored evaluation, given as (task, scaling, length, scores)."""

    def make(*cells, **changes):
        described = [
            (describe_cell(task, scaling, length, 4, **changes), scores) for task, scaling, length, scores in cells
        ]
        with write_store(tmp_path, described) as store:
            return store.cells()

    return make


def test_the_effective_length_is_the_longest_with_85_percent_of_the_short_score(make_cells):
    scores = {1024: [1, 1, 1, 1], 4096: [1, 1, 1, 0.5], 8192: [1, 1, 0.5, 0.5], 16_384: [0, 0, 0, 0]}
    cells = make_cells(*(("needle", "none", length, values) for length, values in scores.items()))
    (found,) = list_effective_lengths(cells)  # 100, 87.5, 75 and 0 %
    assert (found.base_length, found.base_score, found.length, found.is_longest) == (1024, 1.0, 4096, False)


def test_the_base_is_the_score_of_the_same_scaling(make_cells):
    cells = make_cells(
        ("needle", "none", 1024, [1, 1, 1, 1]), ("needle", "none", 4096, [0, 0, 0, 0]),
        ("needle", "yarn:factor=2", 1024, [0.5, 0.5, 0, 0]), ("needle", "yarn:factor=2", 4096, [0.5, 0.5, 0, 0]),
        ("needle", "linear:factor=2", 1024, [0, 0, 0, 0]), ("needle", "linear:factor=2", 4096, [1, 0, 0, 0]),
        ("passkey", "none", 1024, [1, 1, 1, 1]),
    )  # fmt: skip
    none, yarn, linear = list_effective_lengths(cells)  # passkey has only one length
    assert (none.length, none.is_longest) == (1024, False)
    assert (yarn.length, yarn.is_longest) == (4096, True)
    assert linear.length is None
    assert yarn.to_dict() == {
        "scaling": "yarn:factor=2", "task": "needle", "base_length": 1024, "base_score": 0.25, "length": 4096,
        "is_longest": True,
    }  # fmt: skip


def test_unfinished_cells_and_perplexity_have_no_effective_length(make_cells):
    assert not list_effective_lengths(
        make_cells(("needle", "none", 1024, [1, 1, 1, 1]), ("needle", "none", 4096, [1, 1]))
    )


def test_perplexity_has_no_effective_length(make_cells):
    cells = [("perplexity", "none", length, [9, 9, 9, 9]) for length in (1024, 2048)]
    assert not list_effective_lengths(make_cells(*cells, main="ppl", better="lower"))


def with_prompt(index, scores):
    sample = make_sample(index, 0)
    return {**sample, "prompt": f"{index:064}", "scores": scores}


def test_the_cost_on_short_text_compares_the_same_prompts(make_cells):
    def samples(losses):
        return [with_prompt(index, {"ppl": math.exp(loss), "nll": loss}) for index, loss in enumerate(losses)]

    cells = make_cells(
        ("perplexity", "none", 8192, samples([2.0, 2.2, 1.9, 2.1])),
        ("perplexity", "yarn:factor=2", 8192, samples([2.02, 2.26, 1.92, 2.14])),
        ("perplexity", "none", 16_384, samples([4.0] * 4)),
        ("perplexity", "yarn:factor=2", 16_384, samples([2.0] * 4)),
        main="ppl", better="lower",
    )  # fmt: skip
    (cost,) = list_short_costs(cells, 8192)
    # The differences are 0.02, 0.06, 0.02 and 0.04: mean 0.035, sum of squared deviations 0.0011.
    assert (cost.task, cost.length, cost.column, cost.unit) == ("perplexity", 8192, "yarn:factor=2", "%")
    assert cost.difference.mean == pytest.approx(100 * (math.exp(0.035) - 1))
    assert cost.difference.standard_error == pytest.approx(100 * math.exp(0.035) * math.sqrt(0.0011 / 3 / 4))
    assert str(cost) == "+3.6 ± 1.0 %"
    assert not list_short_costs(cells, 4096)
    assert not list_short_costs(cells, None)


def test_shares_are_compared_in_points_and_other_prompts_not_at_all(make_cells):
    cells = make_cells(
        ("passkey", "none", 8192, [with_prompt(index, {"found": 1.0}) for index in range(4)]),
        ("passkey", "yarn:factor=4", 8192, [with_prompt(index, {"found": float(index < 3)}) for index in range(4)]),
        ("passkey", "yarn:factor=2", 8192, [with_prompt(index + 7, {"found": 0.0}) for index in range(4)]),
    )
    (cost,) = list_short_costs(cells, 8192)
    assert (cost.column, str(cost)) == ("yarn:factor=4", "-25.0 ± 25.0 points")


def test_the_page_has_both_tables(tmp_path):
    cells = [
        (describe_cell("passkey", scaling, length, 2), [with_prompt(index, {"found": 1.0}) for index in range(2)])
        for scaling in ("none", "yarn:factor=2")
        for length in (4096, 8192)
    ]
    with write_store(tmp_path, cells) as store:
        page = write_report(store, tmp_path / "report.html")[0].read_text()
    assert "passkey at 8k, 2 prompts" in page.replace("<wbr>", "")
    assert "+0.0 ± 0.0 points" in page
    assert "passkey, from 4k" in page.replace("<wbr>", "")
    assert "≥ 8k" in page


def test_the_page_says_which_prompts_a_task_had(tmp_path):
    cells = [
        (describe_cell("passkey", "none", 4096, 1, chat=True), [1]),
        (describe_cell("needle", "none", 4096, 1, chat=True), [1]),
        (describe_cell("perplexity", "none", 4096, 1, main="ppl", better="lower"), [9]),
    ]
    with write_store(tmp_path, cells) as store:
        page = write_report(store, tmp_path / "report.html")[0].read_text()
    assert "in the chat template of the model: passkey, needle<br>as plain text: perplexity" in page
