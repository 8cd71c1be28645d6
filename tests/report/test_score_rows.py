"""Cells grouped by task and suite, and their scores as rows."""

from __future__ import annotations

from tests.helpers.fake_results import describe_cell, make_sample, write_store

from ropewalk.report.grouping import group_by_task
from ropewalk.report.score_rows import all_rows, group_rows, length_bin_rows


def test_tasks_of_a_suite_with_different_settings_are_not_averaged(tmp_path):
    cells = [
        (describe_cell("ruler:task=vt", "none", 4096, 1, main="score"), [1]),
        (describe_cell("ruler:task=cwe", "none", 4096, 1, main="score"), [0]),
        (describe_cell("ruler:task=fwe", "none", 4096, 2, main="score"), [0, 0]),
    ]
    with write_store(tmp_path, cells) as store:
        means = [row for row in all_rows(store.cells()) if row.averaged_tasks]
    assert [(row.averaged_tasks, row.format("none")) for row in means] == [
        (("ruler:task=vt", "ruler:task=cwe"), "50.0")
    ]


def test_a_suite_has_no_mean_until_all_of_its_tasks_are_finished(tmp_path):
    cells = [
        (describe_cell("ruler:vt", "none", 4096, 2, main="score"), [1, 1]),
        (describe_cell("ruler:cwe", "none", 4096, 2, main="score"), [1]),
    ]
    with write_store(tmp_path, cells) as store:
        mean = all_rows(store.cells())[-1]
    assert mean.task == "ruler, mean of 2"
    assert mean.averaged_tasks == ("ruler:vt", "ruler:cwe")
    assert mean.format("none") == "3/4"


def test_a_task_in_a_chat_template_and_as_plain_text_is_two_tasks(tmp_path):
    cells = [(describe_cell("passkey", "none", 4096, 2, chat=chat), [chat, 1]) for chat in (False, True)]
    with write_store(tmp_path, cells) as store:
        cells = store.cells()
    prompts = ("plain text", "chat template")
    assert list(group_by_task(cells)) == [f"passkey (2 samples, seed 0, {prompt}, version 1)" for prompt in prompts]


def test_a_task_with_two_seeds_is_two_tasks(tmp_path):
    cells = [(describe_cell("passkey", "none", 4096, 2, seed=seed), [seed, 1]) for seed in (0, 1)]
    with write_store(tmp_path, cells) as store:
        cells = store.cells()
    assert list(group_by_task(cells)) == [f"passkey (2 samples, seed {seed}, plain text, version 1)" for seed in (0, 1)]
    assert [row.format("none") for row in all_rows(cells)] == ["50.0", "100.0"]


def test_groups_and_bins_of_length_are_means_of_tasks(tmp_path):
    def make_cell(task, group, scores):
        samples = [
            make_sample(index, score, main="score", about={"group": group, "bin": bin_name})
            for index, (score, bin_name) in enumerate(zip(scores, ("4-8k", "0-4k", "0-4k"), strict=True))
        ]
        return describe_cell(f"longbench:{task}", "none", 8192, 3, main="score"), samples

    cells = [
        make_cell("a", "multi", (1.0, 0.0, 0.5)),
        make_cell("b", "multi", (0.5, 0.5, 0.5)),
        make_cell("c", "code", (0, 0, 0)),
    ]
    with write_store(tmp_path, cells) as store:
        tasks = group_by_task(store.cells())
    assert {row.task: row.format("none") for row in group_rows(tasks)} == {"multi, mean of 2": "50.0", "code": "0.0"}
    bins = {row.task: row.format("none") for row in length_bin_rows(tasks)}
    assert bins == {"0-4k, mean of 3": "25.0", "4-8k, mean of 3": "50.0"}
    assert list(bins) == ["0-4k, mean of 3", "4-8k, mean of 3"]
