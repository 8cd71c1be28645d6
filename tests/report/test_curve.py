from __future__ import annotations

import io

from rich.console import Console

from ropewalk.report.curve import curve_sentence, curve_table, draw_curve


def rows():
    numbers = {"none": (10.0, 30.0), "linear:factor=2": (31.0, 31.0), "yarn:factor=2": (10.5, 9.5)}
    return [
        {"scaling": name, "chunk": None, "policy": None, "length": length, "ppl": ppl, "ppl_last": 2 * ppl}
        for name, pair in numbers.items()
        for length, ppl in zip((8192, 16384), pair, strict=True)
    ]


def test_the_table_marks_the_best_of_each_length():
    console = Console(width=100, record=True, file=io.StringIO())
    console.print(curve_table(rows()))
    lines = {line.split()[1]: line for line in console.export_text().splitlines() if "factor" in line or "none" in line}
    assert "10.00*" in lines["none"]
    assert "30.00*" not in lines["none"]
    assert "9.50*" in lines["yarn:factor=2"]
    assert "*" not in lines["linear:factor=2"]


def test_the_sentence_says_what_the_numbers_say():
    sentence = curve_sentence(rows(), 8192)
    for part in ("8,192", "10.00 at 8k", "30.00 at 16k", "60.0 on the last", "yarn:factor=2 gives 9.50 (19.0)"):
        assert part in sentence
    assert curve_sentence(rows()[2:], 8192) == "At 16,384 tokens yarn:factor=2 is best, with a perplexity of 9.50."


def test_a_figure_is_drawn_as_png(tmp_path):
    draw_curve(rows(), tmp_path / "curve.png", model="m", text="t", original_length=8192)
    assert (tmp_path / "curve.png").read_bytes().startswith(b"\x89PNG")
    assert [path.name for path in tmp_path.iterdir()] == ["curve.png"]
