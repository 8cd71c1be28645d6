from __future__ import annotations

from itertools import pairwise

from matplotlib.text import Text

from ropewalk.report import line_chart
from ropewalk.report.line_chart import draw_line_chart, style_lines


def test_labels_at_the_ends_of_lines_do_not_overlap_and_stay_in_the_picture(tmp_path, monkeypatch):
    figures, new_figure = [], line_chart.new_figure

    def record_figure(*size, **options):
        figures.append(new_figure(*size, **options))
        return figures[-1]

    monkeypatch.setattr(line_chart, "new_figure", record_figure)
    lines = {f"dynamic-ntk-by-parts:beta_fast={beta}": [(4096, 1.0), (16384, 1.0)] for beta in range(8)}
    draw_line_chart(
        style_lines(lines), tmp_path / "l.png", title="m, $x$_$y", score="found", is_share=True, original_length=8192
    )
    (figure,) = figures
    (axes,) = figure.axes
    figure.draw_without_rendering()
    labels = [label for label in axes.texts if "ntk" in label.get_text()]
    # Text.get_window_extent: the box of an annotation would include its arrow
    boxes = sorted((Text.get_window_extent(label) for label in labels), key=lambda box: box.y0)
    assert len(boxes) == 8
    assert all(below.y1 <= above.y0 + 1 for below, above in pairwise(boxes))
    assert boxes[-1].y0 < axes.bbox.y1
