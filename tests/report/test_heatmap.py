from __future__ import annotations

import numpy as np
import pytest
from tests.helpers.fake_results import describe_cell, make_sample, write_store

from ropewalk.report import heatmap
from ropewalk.report.heatmap import depth_bins, depth_grid, draw_heatmaps

LENGTHS = [1024 * 2**exponent for exponent in range(12)]


@pytest.mark.parametrize(
    ("samples", "expected"), [(1, [0.5]), (2, [0, 1]), (5, [0, 0.25, 0.5, 0.75, 1]), (40, np.linspace(0, 1, 11))]
)
def test_there_is_one_row_per_sample_up_to_eleven(samples, expected):
    assert depth_bins(samples) == pytest.approx(expected)


def test_each_sample_has_its_own_cell_and_unfinished_ones_are_nan(tmp_path):
    cells = [
        (describe_cell("passkey", "none", 4096, 3), [1, 0, 1]),
        (describe_cell("passkey", "none", 8192, 3), [1, 0.5]),  # the third sample is not finished
    ]
    with write_store(tmp_path, cells) as store:
        grid = depth_grid(store.cells(), [4096, 8192], depth_bins(3))
    assert np.array_equal(grid, [[1, 1], [0, 0.5], [1, np.nan]], equal_nan=True)


def test_many_samples_are_averaged_in_the_nearest_of_eleven_rows(tmp_path):
    depths = {0.0: 1, 0.04: 0, 0.05: 1, 0.1: 1, 0.14: 0, 0.96: 1, 1.0: 0}
    samples = [make_sample(index, score, about={"depth": depth}) for index, (depth, score) in enumerate(depths.items())]
    with write_store(tmp_path, [(describe_cell("passkey", "none", 4096, 40), samples)]) as store:
        grid = depth_grid(store.cells(), [4096], depth_bins(40))[:, 0]
    assert grid[[0, 1, 10]] == pytest.approx([1 / 2, 2 / 3, 1 / 2])
    assert np.isnan(grid[2:10]).all()


@pytest.mark.parametrize(("scalings", "rows", "lengths"), [(1, 11, 1), (3, 3, 12)])
def test_heatmaps_of_any_size_fit_a_page_and_no_text_is_cut(tmp_path, monkeypatch, scalings, rows, lengths):
    figures, new_figure = [], heatmap.new_figure

    def record_figure(*size, **options):
        figures.append(new_figure(*size, **options))
        return figures[-1]

    monkeypatch.setattr(heatmap, "new_figure", record_figure)
    panels = {f"dynamic-ntk-by-parts {index}": np.full((rows, lengths), 0.5) for index in range(scalings)}
    panels["dynamic-ntk-by-parts 0"][0, 0] = np.nan
    path = tmp_path / "map.png"
    draw_heatmaps(
        panels, path, lengths=LENGTHS[:lengths], row_labels=[f"{tenth}0 %" for tenth in range(rows)],
        title="m, passkey", ylabel="depth", original_length=8192,
    )  # fmt: skip
    assert path.read_bytes().startswith(b"\x89PNG")
    (figure,) = figures
    assert figure.get_size_inches()[0] <= 13
    panel_axes = [axes for axes in figure.axes if axes.get_images()]
    assert len(panel_axes) == scalings
    assert len(panel_axes[0].texts) == rows * lengths - 1  # a number in each cell but the missing one
    boxes = [axes.get_window_extent() for axes in panel_axes]
    titles = [axes.title.get_window_extent() for axes in panel_axes]
    assert all(title.width <= box.width * 1.1 for title, box in zip(titles, boxes, strict=True))
    number = panel_axes[0].texts[0].get_window_extent()
    assert number.width < boxes[0].width / lengths
