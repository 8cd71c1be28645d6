from __future__ import annotations

import io

from rich.console import Console

from ropewalk.report.curve import curve_sentence, curve_table, draw_curve


def make_rows():
    perplexities = {"none": (10.0, 30.0), "linear:factor=2": (31.0, 31.0), "yarn:factor=2": (10.5, 9.5)}
    return [
        {"scaling": name, "chunk": None, "policy": None, "length": length, "ppl": ppl, "ppl_last": 2 * ppl}
        for name, values in perplexities.items()
        for length, ppl in zip((8192, 16384), values, strict=True)
    ]


def test_the_table_marks_the_best_of_each_length():
    console = Console(width=100, record=True, file=io.StringIO())
    console.print(curve_table(make_rows()))
    lines = {line.split()[0]: line for line in console.export_text().splitlines() if "factor" in line or "none" in line}
    assert "10.00*" in lines["none"]
    assert "30.00*" not in lines["none"]
    assert "9.50*" in lines["yarn:factor=2"]
    assert "*" not in lines["linear:factor=2"]


def test_the_sentence_reports_the_numbers_of_the_rows():
    sentence = curve_sentence(make_rows(), 8192)
    for part in ("8,192", "10.00 at 8k", "30.00 at 16k", "60.0 on the last", "yarn:factor=2 has 9.50 (19.0)"):
        assert part in sentence


def test_the_sentence_without_the_unscaled_model_names_the_best_scaling():
    assert curve_sentence(make_rows()[2:], 8192) == (
        "At 16,384 tokens yarn:factor=2 is best, with a perplexity of 9.50."
    )


def test_the_picture_is_a_png_and_the_only_file(tmp_path):
    draw_curve(make_rows(), tmp_path / "curve.png", model="m", text="t", original_length=8192)
    assert (tmp_path / "curve.png").read_bytes().startswith(b"\x89PNG")
    assert [path.name for path in tmp_path.iterdir()] == ["curve.png"]
