from __future__ import annotations

import io

from rich.console import Console

from ropewalk.evaluate.short_tax import compute_short_tax
from ropewalk.report import curve as curves
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
    for part in ("8,192", "10.00 at 8k", "30.00 at 16k", "60.00 on the last", "yarn:factor=2 has 9.50 (19.00)"):
        assert part in sentence


def test_the_sentence_without_the_unscaled_model_names_the_best_scaling():
    assert curve_sentence(make_rows()[2:], 8192) == (
        "At 16,384 tokens yarn:factor=2 is best, with a perplexity of 9.50."
    )


def test_the_picture_is_a_png_and_the_only_file(tmp_path):
    draw_curve(make_rows(), tmp_path / "curve.png", model="m", text="t", original_length=8192)
    assert (tmp_path / "curve.png").read_bytes().startswith(b"\x89PNG")
    assert [path.name for path in tmp_path.iterdir()] == ["curve.png"]


def make_longppl_rows(evaluator="itself under yarn:factor=2"):
    values = {"none": 30.0, "yarn:factor=2": 2.5}
    return [
        {**row, "longppl": values[row["scaling"]], "key_tokens": 1234, "evaluator": evaluator}
        for row in make_rows()
        if row["length"] == 16384 and row["scaling"] in values
    ]


def export(table):
    console = Console(width=110, record=True, file=io.StringIO())
    console.print(table)
    return console.export_text()


def test_the_table_of_longppl_has_the_number_of_key_tokens():
    shown = export(curves.longppl_table(make_longppl_rows()))
    assert "2.50*" in shown
    assert "30.00*" not in shown
    assert "1,234 key tokens" in shown


def test_a_model_that_judges_itself_is_said_to():
    sentence = curves.evaluator_sentence(make_longppl_rows())
    assert sentence.startswith("1,234 of 16,384 tokens are key tokens, found by the model itself under yarn:factor=2; ")
    assert "favors scalings like this one" in sentence
    assert curves.evaluator_sentence(make_longppl_rows("Qwen/Qwen3-8B under none")).endswith(
        "Qwen/Qwen3-8B under none."
    )


def test_the_picture_of_longppl_is_a_png(tmp_path):
    path = tmp_path / "longppl.png"
    curves.draw_longppl(make_longppl_rows(), path, model="m", text="t", original_length=8192)
    assert path.read_bytes().startswith(b"\x89PNG")


def test_the_table_of_the_short_cost_has_its_uncertainty():
    several = compute_short_tax("yarn:factor=4", 8192, [1.1, 1.14], [1.0, 1.0])
    shown = export(curves.short_tax_table([several]))
    # The differences are 0.1 and 0.14: exp(0.12) is 1.1275, and the standard error 0.02 of it is 2.25 %.
    for part in ("the first 8,192 tokens", "errors over 2 windows", "3.06", "2.72", "+12.75", "2.25"):
        assert part in shown
    one = compute_short_tax("yarn:factor=4", 8192, [1.1], [1.0])
    assert one["standard_error"] is None
    assert "+10.52" in export(curves.short_tax_table([one]))
