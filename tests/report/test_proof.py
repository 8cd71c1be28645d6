from __future__ import annotations

import io

from rich.console import Console

from ropewalk.report.proof import draw_proof, proof_tables
from ropewalk.tuning.proof import Proof, Retrieval

PROOF = Proof(
    model="model",
    dtype="float32",
    original_length=8192,
    tuned="learned",
    best_formula="yarn:factor=2",
    ends=[8192, 16384],
    perplexities={
        "book.txt": {
            "learned": [12.0, 9.0],
            "yarn:factor=2": [11.0, 9.5],
            "none": [10.0, 300.0],
            "native-window": [10.0, 8.5],
        }
    },
    retrieval=[
        Retrieval("passkey", 16384, "learned", [1.0, 0.0, 1.0], [0.0, 0.5, 1.0]),
        Retrieval("needle", 16384, "yarn:factor=2", [0.0, 0.0, 1.0], [0.0, 0.5, 1.0]),
    ],
)


def printed_lines():
    console = Console(width=120, record=True, file=io.StringIO())
    for table in proof_tables(PROOF):
        console.print(table)
    return console.export_text().splitlines()


def line_with(*parts):
    return next(line for line in printed_lines() if all(part in line for part in parts))


def test_the_best_scaling_of_each_bucket_has_a_star_and_the_native_window_has_none():
    assert "12.00 " in line_with("tuned: learned", "9.00*")
    assert "10.00*" in line_with("none", "300 ")
    assert "*" not in line_with("unscaled, the last 8k read again", "8.50")
    assert "11.00 " in line_with("yarn:factor=2 (best formula)", "9.50 ")
    assert line_with("0-8k", "8k-16k")


def test_answers_are_counted_and_shown_by_depth():
    assert "2 of 3" in line_with("passkey 16k", "tuned: learned", "1 0 1")
    assert "1 of 3" in line_with("needle 16k", "yarn:factor=2 (best formula)", "0 0 1")


def test_each_text_has_a_picture(tmp_path):
    (path,) = draw_proof(PROOF, tmp_path)
    assert path.read_bytes().startswith(b"\x89PNG")
