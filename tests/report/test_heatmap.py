from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from matplotlib.text import Text
from tests.helpers.fake_results import description, outcome, store

from ropewalk.report.figures import new_figure
from ropewalk.report.heatmap import depth_grid, depth_rows, draw_grids
from ropewalk.report.lines import draw_lines, one_each

LENGTHS = [1024 * 2**at for at in range(12)]


@pytest.mark.parametrize(
    ("samples", "expected"), [(1, [0.5]), (2, [0, 1]), (5, [0, 0.25, 0.5, 0.75, 1]), (40, np.linspace(0, 1, 11))]
)
def test_there_is_a_row_for_each_depth_up_to_eleven(samples, expected):
    assert depth_rows(samples) == pytest.approx(expected)


def test_few_samples_have_a_field_each_and_missing_ones_have_none(tmp_path):
    cells = [
        (description("passkey", "none", 4096, 3), [1, 0, 1]),
        (description("passkey", "none", 8192, 3), [1, 0.5]),  # the third is not in yet
    ]
    with store(tmp_path, cells) as folder:
        grid = depth_grid(folder.cells(), [4096, 8192], depth_rows(3))
    assert np.array_equal(grid, [[1, 1], [0, 0.5], [1, np.nan]], equal_nan=True)


def test_many_samples_are_averaged_in_the_nearest_of_eleven_rows(tmp_path):
    depths = {0.0: 1, 0.04: 0, 0.05: 1, 0.1: 1, 0.14: 0, 0.96: 1, 1.0: 0}
    given = [outcome(at, score, about={"depth": depth}) for at, (depth, score) in enumerate(depths.items())]
    with store(tmp_path, [(description("passkey", "none", 4096, 40), given)]) as folder:
        grid = depth_grid(folder.cells(), [4096], depth_rows(40))[:, 0]
    assert grid[[0, 1, 10]] == pytest.approx([1 / 2, 2 / 3, 1 / 2])
    assert np.isnan(grid[2:10]).all()


@pytest.mark.parametrize(("scalings", "lengths"), [(1, 1), (8, 12)])
def test_heat_maps_of_any_size_are_no_wider_than_a_page_and_cut_nothing(tmp_path, monkeypatch, scalings, lengths):
    made = []

    def kept(*arguments, **options):
        made.append(new_figure(*arguments, **options))
        return made[-1]

    monkeypatch.setattr("ropewalk.report.heatmap.new_figure", kept)
    panels = {f"dynamic-ntk-by-parts {at}": np.full((11, lengths), 0.5) for at in range(scalings)}
    panels["dynamic-ntk-by-parts 0"][0, 0] = np.nan
    path = tmp_path / "map.png"
    draw_grids(
        panels, path, lengths=LENGTHS[:lengths], down=[f"{at}0 %" for at in range(11)], title="m, passkey",
        ylabel="depth", original_length=8192,
    )  # fmt: skip
    assert path.read_bytes().startswith(b"\x89PNG")
    (figure,) = made
    assert figure.get_size_inches()[0] <= 13
    shown = [axes for axes in figure.axes if axes.get_images()]
    assert len(shown) == scalings
    assert len(shown[0].texts) == 11 * lengths - 1  # numbers: one in each field but the missing one
    edges = [axes.get_window_extent() for axes in shown]
    titles = [axes.title.get_window_extent() for axes in shown]
    assert all(title.width <= edge.width * 1.1 for title, edge in zip(titles, edges, strict=True))
    numbers = shown[0].texts[0].get_window_extent()
    assert numbers.width < edges[0].width / lengths


def test_names_beside_lines_stand_within_the_picture_and_apart(tmp_path, monkeypatch):
    made = []
    monkeypatch.setattr(
        "ropewalk.report.lines.new_figure",
        lambda *size, **options: made.append(new_figure(*size, **options)) or made[0],
    )
    lines = {f"dynamic-ntk-by-parts:beta_fast={at}": [(4096, 1.0), (16384, 1.0)] for at in range(8)}
    draw_lines(one_each(lines), tmp_path / "l.png", title="m, $x$_$y", score="found", share=True, original_length=8192)
    (axes,) = made[0].axes
    made[0].draw_without_rendering()
    boxes = sorted(
        (Text.get_window_extent(name) for name in axes.texts if "ntk" in name.get_text()), key=lambda b: b.y0
    )
    assert len(boxes) == 8
    assert all(below.y1 <= above.y0 + 1 for below, above in pairwise(boxes))
    assert boxes[-1].y0 < axes.bbox.y1
