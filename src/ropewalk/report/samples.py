"""Choose the samples of a task that the page shows, the worst first, and format them."""

from __future__ import annotations

from collections.abc import Sequence, Set
from typing import Any

from ropewalk.evaluate.evaluation_store import CellResult
from ropewalk.evaluate.sample import SampleResult
from ropewalk.lengths import format_length
from ropewalk.report.formatting import format_score, shorten_middle
from ropewalk.report.score_rows import is_share_score, sample_score

MAX_SAMPLES = 20  # shown per task
_MAX_CHARACTERS = 400  # shown of a text
_MAX_COLUMN_CHARACTERS = 60


def list_scores(cells: Sequence[CellResult]) -> list[str]:
    """Return the names of all scores that the samples of a task have."""
    return list(dict.fromkeys(name for cell in cells for sample in cell.sample_results for name in sample["scores"]))


def choose_samples(cells: Sequence[CellResult]) -> list[dict[str, Any]]:
    """Return at most 20 samples of a task, the worst first, taken in equal numbers from each of its cells.

    Each is a dict with what the page shows. Its texts are as the model gave them; the template escapes them.
    """
    main = cells[0].description["main"]
    sign = 1 if cells[0].description["better"] == "higher" else -1

    def goodness(sample: SampleResult) -> float:
        return sign * (sample_score(sample, main) or 0.0)

    ranked = []
    for cell in cells:
        for rank, sample in enumerate(sorted(cell.sample_results, key=goodness)):
            ranked.append((rank, goodness(sample), cell, sample))
    ranked.sort(key=lambda entry: entry[:2])  # the worst of each cell, then the second worst of each
    chosen = sorted(ranked[:MAX_SAMPLES], key=lambda entry: entry[1])
    shares = {name for name in list_scores(cells) if is_share_score(cells, name)}
    return [_format_sample(cell, sample, shares) for _, _, cell, sample in chosen]


def _format_sample(cell: CellResult, sample: SampleResult, shares: Set[str]) -> dict[str, Any]:
    """`shares`: names of the scores that are shown in percent."""
    about = []
    for name, value in sample["about"].items():
        about.append(f"{name} {100 * value:.0f} %" if name == "depth" else f"{name} {value}")
    scores = []
    for name in sample["scores"]:
        score = sample_score(sample, name)
        if score is not None:
            scores.append(f"{name} {format_score(score, name in shares)}{' %' if name in shares else ''}")
    return {
        "scaling": shorten_middle(cell.description["column"], _MAX_COLUMN_CHARACTERS),
        "length": format_length(cell.description["length"]),
        "number": sample["index"],
        "about": about,
        "references": _truncate(" | ".join(sample["references"])),
        "answer": _truncate(sample["answer"]),
        "scores": scores,
    }


def _truncate(text: str) -> str:
    """Return the beginning of a long text, and how long it was."""
    return text if len(text) <= _MAX_CHARACTERS else f"{text[:_MAX_CHARACTERS]} … ({len(text):,} characters)"
