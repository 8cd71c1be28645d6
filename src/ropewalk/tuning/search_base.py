"""What the searches without gradients share: options, the cost, the budget, and progress."""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from dataclasses import dataclass, field

from ropewalk.method import above, at_least, check_options, whole
from ropewalk.scaling import Scaling
from ropewalk.tuning.base import OnProgress, TuneJob, Tuner
from ropewalk.tuning.needle_perplexity import WORST, NeedlePerplexity
from ropewalk.tuning.windows import choose_window_tokens


class Candidates(ABC):
    """The candidates of a search, stored in a folder, of which some have a cost."""

    @property
    @abstractmethod
    def num_finished(self) -> int:
        """The number of candidates with a cost."""

    @property
    @abstractmethod
    def seconds(self) -> float:
        """The time that these have taken."""

    @abstractmethod
    def ask(self) -> Scaling:
        """Return the next candidate. The costs so far and the seed decide which, so that a search can continue."""

    @abstractmethod
    def tell(self, cost: float, seconds: float) -> None:
        """Store the cost of the candidate that `ask` returned last, and the time that it took."""

    @abstractmethod
    def best(self) -> tuple[float, Scaling]:
        """Return the lowest cost, and the candidate that has it."""


@dataclass(frozen=True)
class SearchTuner(Tuner):
    """A search that tries one scaling after the other; an abstract class.

    Only the model's outputs are needed, so it also works for a quantized model. It begins with YaRN, so the result is
    never worse than that on the texts of the search.

    Options:
        trials: scalings to try in all, those of interrupted runs included.
        minutes: ends the search earlier, after this time; that of interrupted runs included.
        texts: number of windows that each scaling reads, one from each document in turn; later documents are not read.
        facts: facts planted in each text.
        text_weight: weight of the loss on the text, beside that on the answers about the facts.
        window: tokens read of each text; by default the target, or fewer on a CPU (windows.py).
    """

    trials: int = field(default=60, metadata=whole("trials"))
    minutes: float | None = field(default=None, metadata=above(0))
    texts: int = field(default=2, metadata=whole("texts"))
    facts: int = field(default=12, metadata=whole("facts"))
    text_weight: float = field(default=1.0, metadata=at_least(0))
    window: int | None = field(default=None, metadata=whole("tokens"))

    def __post_init__(self) -> None:
        check_options(self)

    @abstractmethod
    def open_candidates(self, job: TuneJob, digest: str) -> Candidates:
        """Return the candidates of this search, with those that are stored in the folder of the job.

        `digest`: of all that determines the costs; stored costs with another digest are of no use.
        """

    def run(self, job: TuneJob, on_progress: OnProgress) -> Scaling:
        window = choose_window_tokens(job, self.window)
        objective = NeedlePerplexity(
            job, texts=self.texts, facts=self.facts, window=window, text_weight=self.text_weight
        )
        candidates = self.open_candidates(job, objective.digest)

        def share_of_budget() -> float:
            share = candidates.num_finished / self.trials
            if self.minutes is not None:
                share = max(share, candidates.seconds / (60 * self.minutes))
            return min(share, 1.0)

        while share_of_budget() < 1 or not candidates.num_finished:
            started, scaling = time.monotonic(), candidates.ask()
            cost = objective.cost(scaling)
            if cost >= WORST and not candidates.num_finished:
                raise RuntimeError(f"{scaling}: the model's loss is not a number; try another dtype")
            candidates.tell(cost, time.monotonic() - started)
            lowest, _ = candidates.best()
            detail = f"trial {candidates.num_finished} of {self.trials}, lowest cost {lowest:.4f}"
            on_progress(share_of_budget(), detail)
        return candidates.best()[1]
