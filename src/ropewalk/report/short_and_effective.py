"""From the cells of an evaluation: what a scaling costs on short text, and up to which length it keeps its score."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ropewalk.evaluate.evaluation_store import CellResult
from ropewalk.evaluate.paired import PairedDifference, paired_difference
from ropewalk.evaluate.perplexity import perplexity_of
from ropewalk.report.grouping import group_by_column, group_by_task
from ropewalk.report.score_rows import is_share_score, sample_score

_UNSCALED = "none"
# NoLiMa (arXiv 2502.05167). RULER (arXiv 2404.06654) compares with the score of Llama 2 7B at 4,096 tokens, 85.6 %.
EFFECTIVE_SHARE = 0.85


@dataclass(frozen=True)
class ShortCost:
    """The mean difference of a score under a scaling from that of the unscaled model, on the same short prompts.

    Attributes:
        task: name of the task.
        length: tokens of the prompts, at most as many as the model was trained on.
        column: the scaling.
        unit: "%" for a relative difference of perplexity, "points" for a share in percent, empty for another score.
        difference: in that unit, with its standard error over the prompts.
    """

    task: str
    length: int
    column: str
    unit: str
    difference: PairedDifference

    def __str__(self) -> str:
        unit = f" {self.unit}" if self.unit else ""
        error = self.difference.standard_error
        uncertainty = "" if error is None else f" ± {error:.1f}"
        return f"{self.difference.mean:+.1f}{uncertainty}{unit}"


@dataclass(frozen=True)
class EffectiveLength:
    """The longest length at which a score is at least 85 % of its value at the shortest one.

    Attributes:
        task: name of the task.
        column: the scaling.
        base_length, base_score: the shortest length in tokens, and the score there.
        length: the effective length in tokens; None if the score is 0 at the shortest length.
        is_longest: whether no longer length was evaluated, so that the effective length may be longer.
    """

    task: str
    column: str
    base_length: int
    base_score: float
    length: int | None
    is_longest: bool

    def to_dict(self) -> dict[str, Any]:
        """Return the values as a dict that is ready for JSON."""
        return {"scaling": self.column, **{name: value for name, value in vars(self).items() if name != "column"}}


def list_short_costs(cells: Sequence[CellResult], original_length: int | None) -> list[ShortCost]:
    """Return the cost of each scaling on each task, at the longest length that the unscaled model was trained for."""
    costs = []
    for task, task_cells in group_by_task(cells).items():
        columns = _finished_by_column(task_cells)
        lengths = [length for length in columns.get(_UNSCALED, {}) if original_length and length <= original_length]
        for length in sorted(lengths)[-1:]:
            unscaled = columns[_UNSCALED][length]
            for column, by_length in columns.items():
                if column != _UNSCALED and length in by_length:
                    costs += _compare(task, length, column, by_length[length], unscaled)
    return costs


def list_effective_lengths(cells: Sequence[CellResult]) -> list[EffectiveLength]:
    """Return the effective length of each scaling on each task that was evaluated at several lengths.

    A task whose lower scores are better has none.
    """
    found = []
    for task, task_cells in group_by_task(cells).items():
        description = task_cells[0].description
        if description["better"] != "higher":
            continue
        for column, by_length in _finished_by_column(task_cells).items():
            scores = {length: (cell.summary or {})[description["main"]] for length, cell in sorted(by_length.items())}
            if len(scores) < 2:
                continue
            base_length, longest = min(scores), max(scores)
            base = scores[base_length]
            kept = max(length for length, score in scores.items() if score >= EFFECTIVE_SHARE * base)
            length = kept if base > 0 else None
            found.append(EffectiveLength(task, column, base_length, base, length, length == longest))
    return found


def _finished_by_column(cells: Sequence[CellResult]) -> dict[str, Mapping[int, CellResult]]:
    """Return the finished cells of a task by column and length."""
    return {
        column: {cell.description["length"]: cell for cell in column_cells if cell.summary is not None}
        for column, column_cells in group_by_column(cells).items()
    }


def _compare(task: str, length: int, column: str, cell: CellResult, unscaled: CellResult) -> list[ShortCost]:
    """Return the cost from the samples with the same prompts, if there are any."""
    main = cell.description["main"]
    score = "nll" if main == "ppl" and "nll" in unscaled.sample_results[0]["scores"] else main
    baseline = {sample["prompt"]: sample_score(sample, score) for sample in unscaled.sample_results}
    pairs = [
        (value, base)
        for sample in cell.sample_results
        if (value := sample_score(sample, score)) is not None and (base := baseline.get(sample["prompt"])) is not None
    ]
    if not pairs:
        return []
    values, bases = zip(*pairs, strict=True)
    difference = paired_difference(values, bases)
    if score == "nll":
        ratio = perplexity_of(difference.mean)
        return [ShortCost(task, length, column, "%", _scale(difference, 100 * (ratio - 1), 100 * ratio))]
    if is_share_score([unscaled, cell], main):
        return [ShortCost(task, length, column, "points", _scale(difference, 100 * difference.mean, 100))]
    return [ShortCost(task, length, column, "", difference)]


def _scale(difference: PairedDifference, mean: float, slope: float) -> PairedDifference:
    """Return a difference in another unit: its mean there, and the factor of its standard error."""
    error = difference.standard_error
    return PairedDifference(mean, None if error is None else slope * error, difference.count)
