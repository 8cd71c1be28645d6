"""A proof of a tuned scaling as tables and pictures."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

from rich.table import Table
from rich.text import Text

from ropewalk.lengths import format_length
from ropewalk.report.formatting import format_number, shorten_middle
from ropewalk.report.line_chart import draw_line_chart, style_lines
from ropewalk.report.tables import make_table, mark_best
from ropewalk.tuning.proof import NATIVE_WINDOW, Proof

_MAX_LABEL_CHARACTERS = 40


def proof_tables(proof: Proof) -> Iterator[Table]:
    """Yield a table of perplexity by bucket for each text, and one of the answers by task, length and depth."""
    for text in proof.perplexities:
        yield _perplexity_table(proof, text)
    yield _retrieval_table(proof)


def draw_proof(proof: Proof, folder: Path) -> list[Path]:
    """Draw perplexity by bucket as `perplexity-N.png` for each text, and return the paths."""
    paths = []
    for number, (text, perplexities) in enumerate(proof.perplexities.items(), 1):
        points = {
            _label(proof, scaling): list(zip(proof.ends, values, strict=True))
            for scaling, values in perplexities.items()
        }
        paths.append(folder / f"perplexity-{number}.png")
        draw_line_chart(
            style_lines(points),
            paths[-1],
            title=f"{proof.model} reading {text}, which it was not tuned on",
            score="perplexity of the tokens up to each mark",
            is_share=False,
            original_length=proof.original_length,
        )
    return paths


def _perplexity_table(proof: Proof, text: str) -> Table:
    scalings = dict(proof.perplexities[text])
    window = scalings.pop(NATIVE_WINDOW)
    best = [format_number(min(bucket)) for bucket in zip(*scalings.values(), strict=True)]
    rows: list[list[str | Text]] = []
    for scaling, values in scalings.items():
        shown = [format_number(value) for value in values]
        marked = [mark_best(value, value == best_value) for value, best_value in zip(shown, best, strict=True)]
        rows.append([_label(proof, scaling), *marked])
    rows += [[], [_label(proof, NATIVE_WINDOW), *(mark_best(format_number(value), False) for value in window)]]
    buckets = [f"{format_length(start)}-{format_length(end)}" for start, end in pairwise([0, *proof.ends])]
    return make_table(f"Perplexity of {text} by tokens (* best scaling)", ["scaling", *buckets], rows)


def _retrieval_table(proof: Proof) -> Table:
    rows: list[list[str]] = []
    task = ""
    for each in proof.retrieval:
        name = f"{each.task} {format_length(each.length)}"
        if rows and name != task:
            rows.append([])
        task = name
        by_depth = " ".join(f"{found:g}" for found in each.found)
        rows.append([name, _label(proof, each.scaling), f"{sum(each.found):g} of {len(each.found)}", by_depth])
    headings = ["task", "scaling", "found", "by depth, from the beginning of the text"]
    return make_table("Answers found", headings, rows, text_columns=(0, 1))


def _label(proof: Proof, scaling: str) -> str:
    """Return what a line or a row is called: the spec, and what is particular about it."""
    if scaling == NATIVE_WINDOW:
        return f"unscaled, the last {format_length(proof.original_length)} read again"
    shown = shorten_middle(scaling, _MAX_LABEL_CHARACTERS)
    if scaling == proof.tuned:
        return f"tuned: {shown}"
    return f"{shown} (best formula)" if scaling == proof.best_formula else shown
