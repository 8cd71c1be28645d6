"""Search a divisor for each pair by evolution, as LongRoPE does."""

from __future__ import annotations

import json
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ropewalk.errors import InputError
from ropewalk.evaluate.field_checks import check_fields, is_list_of_numbers, is_number
from ropewalk.evaluate.json_lines import read_json_lines
from ropewalk.files import write_text_atomically
from ropewalk.rope import Rope
from ropewalk.scaling import Scaling
from ropewalk.scaling.learned import Learned
from ropewalk.scaling.linear import Linear
from ropewalk.scaling.ntk import NTK
from ropewalk.tuning.base import TuneJob
from ropewalk.tuning.search_base import Candidates, SearchTuner

_PARENTS = 8
_MUTATED = 0.3  # part of the numbers that a mutation changes
_MUTATION = 0.1  # standard deviation of a changed log divisor
_ATTENTION_FACTOR_MUTATION = 0.02
_LARGEST_DIVISOR = 1.25  # relative to the factor (LongRoPE, table 4)
_LINE_CHECKS = {"cost": is_number, "seconds": is_number, "divisors": is_list_of_numbers, "attention_factor": is_number}


@dataclass(frozen=True)
class Evolution(SearchTuner):
    """Divisors that never fall from one pair to the next, found by mutation and crossover.

    The algorithm is LongRoPE's (arXiv 2402.13753, sec. 3.2 and algorithm 1) with three changes: each candidate
    replaces the worst parent at once, mutations change divisors by small factors, and the attention factor evolves,
    too. It begins with linear, NTK and YaRN. The candidates lie in `evolution-DIGEST.jsonl`.
    """

    name = "evolution"

    def open_candidates(self, job: TuneJob, digest: str) -> Candidates:
        return _Population(job, digest)


class _Population(Candidates):
    """The candidates as arrays: the divisor of each pair, then the attention factor, [P + 1]."""

    def __init__(self, job: TuneJob, digest: str) -> None:
        """Read the candidates that the folder has. Raises InputError for a damaged file."""
        self._job = job
        self._path = job.folder / f"evolution-{digest[:12]}.jsonl"
        self._costs: list[float] = []
        self._seconds: list[float] = []
        self._candidates: list[NDArray[np.float64]] = []
        factor = job.formula.factor
        self._formulas = [_to_array(scaling, job.rope) for scaling in (job.formula, NTK(factor), Linear(factor))]
        self._next = self._formulas[0]
        if self._path.exists():
            self._read()

    @property
    def num_finished(self) -> int:
        return len(self._costs)

    @property
    def seconds(self) -> float:
        return sum(self._seconds)

    def ask(self) -> Scaling:
        finished = self.num_finished
        if finished < len(self._formulas):
            self._next = self._formulas[finished]
        else:
            self._next = self._make_child(np.random.default_rng([self._job.seed, finished]))
        return self._scaling(self._next)

    def tell(self, cost: float, seconds: float) -> None:
        self._candidates.append(self._next)
        self._costs.append(cost)
        self._seconds.append(seconds)
        lines = [
            json.dumps({"cost": cost, "seconds": seconds, "divisors": each[:-1].tolist(), "attention_factor": each[-1]})
            for cost, seconds, each in zip(self._costs, self._seconds, self._candidates, strict=True)
        ]
        write_text_atomically(self._path, "\n".join(lines) + "\n")

    def best(self) -> tuple[float, Scaling]:
        index = int(np.argmin(self._costs))
        return self._costs[index], self._scaling(self._candidates[index])

    def _make_child(self, rng: np.random.Generator) -> NDArray[np.float64]:
        """Return a mutation of one of the best candidates, or a crossover of two."""
        parents = [self._candidates[index] for index in np.argsort(self._costs, kind="stable")[:_PARENTS]]
        one, other = (parents[index] for index in rng.permutation(len(parents))[:2])
        child: NDArray[np.float64]
        if rng.random() < 0.5:
            child = np.where(rng.random(len(one)) < 0.5, one, other)
        else:
            deviations = np.full(len(one), _MUTATION)
            deviations[-1] = _ATTENTION_FACTOR_MUTATION
            child = np.where(rng.random(len(one)) < _MUTATED, one * np.exp(rng.normal(0.0, deviations)), one)
        # The divisors of a child come in rising order, which keeps the constraint of LongRoPE.
        child[:-1] = np.sort(child[:-1].clip(1.0, _LARGEST_DIVISOR * self._job.formula.factor))
        return child

    def _scaling(self, candidate: NDArray[np.float64]) -> Learned:
        *divisors, attention_factor = candidate.tolist()
        job = self._job
        return Learned(tuple(divisors), attention_factor, target=job.target, original_length=job.original_length)

    def _read(self) -> None:
        for name, line in read_json_lines(self._path, "out"):
            try:
                check_fields(line, _LINE_CHECKS)
            except ValueError as error:
                raise InputError(name, line, f"a line of a search ({error})") from None
            self._costs.append(line["cost"])
            self._seconds.append(line["seconds"])
            self._candidates.append(np.array([*line["divisors"], line["attention_factor"]]))


def _to_array(scaling: Scaling, rope: Rope) -> NDArray[np.float64]:
    frequencies = scaling.frequencies(rope)
    return np.append(rope.inv_freq / frequencies.inv_freq, frequencies.attention_factor)
