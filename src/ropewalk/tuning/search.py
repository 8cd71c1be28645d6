"""Search the options of YaRN: where its ramp begins and ends, and its attention factor."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

import numpy as np

from ropewalk.errors import InputError, MissingPackageError
from ropewalk.scaling import Scaling
from ropewalk.scaling.by_parts import correction_range, rotations_at
from ropewalk.scaling.yarn import YaRN
from ropewalk.tuning.base import TuneJob
from ropewalk.tuning.search_base import Candidates, SearchTuner

if TYPE_CHECKING:
    from optuna import Study, Trial

_FILE = "search.sqlite3"
_SECONDS = "seconds"  # attribute of a trial
_ATTENTION_FACTORS = (0.8, 1.25)  # smallest and largest, relative to YaRN's


@dataclass(frozen=True)
class Search(SearchTuner):
    """YaRN with a ramp and an attention factor found by Optuna's TPE.

    The end of the ramp is the critical dimension that LongRoPE2 searches (arXiv 2502.20082). The result is a `yarn`
    with other options, which every engine that has YaRN reads. The trials lie in `search.sqlite3`, a study of Optuna.
    """

    name = "search"

    def open_candidates(self, job: TuneJob, digest: str) -> Candidates:
        return _Study(job, digest)


class _Study(Candidates):
    """The candidates as trials of Optuna.

    The parameters of a trial are the index of the pair `critical`, at which the ramp ends; where the ramp begins, as a
    fraction of that index; and the attention factor relative to YaRN's.
    """

    def __init__(self, job: TuneJob, digest: str) -> None:
        """Open the study. Raises MissingPackageError without optuna, and InputError for a damaged file."""
        try:
            import optuna
        except ImportError:
            raise MissingPackageError("a search", "optuna", "pip install 'ropewalk[tune]'") from None
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        self._optuna = optuna
        self._job = job
        self._study = _open_study(optuna, job.folder / _FILE, f"yarn {digest}")
        for trial in self._study.get_trials(deepcopy=False, states=(optuna.trial.TrialState.RUNNING,)):
            self._study.tell(trial.number, state=optuna.trial.TrialState.FAIL)  # its process was interrupted
        self._trial: Trial | None = None
        yarn, length = job.formula, job.original_length
        low, high = correction_range(job.rope, length, yarn.beta_fast, yarn.beta_slow)
        self._last_critical = max(job.rope.dim // 2 - 1, int(high))
        self._formula = {"critical": int(high), "begin": min((low + 0.5) / high, 1.0), "attention_factor": 1.0}

    @property
    def num_finished(self) -> int:
        return len(self._study.get_trials(deepcopy=False, states=(self._optuna.trial.TrialState.COMPLETE,)))

    @property
    def seconds(self) -> float:
        return float(sum(trial.user_attrs.get(_SECONDS, 0.0) for trial in self._study.get_trials(deepcopy=False)))

    def ask(self) -> Scaling:
        finished = self.num_finished
        # A sampler for each trial: what it draws then follows from the finished trials, not from when the run began.
        seed = np.random.SeedSequence([self._job.seed, finished]).generate_state(1)[0]
        self._study.sampler = self._optuna.samplers.TPESampler(seed=int(seed))
        if not finished:
            self._study.enqueue_trial(self._formula)
        self._trial = self._study.ask()
        self._trial.suggest_int("critical", 1, self._last_critical)
        self._trial.suggest_float("begin", 0.0, 1.0)
        self._trial.suggest_float("attention_factor", *_ATTENTION_FACTORS, log=True)
        return self._scaling(self._trial.params)

    def tell(self, cost: float, seconds: float) -> None:
        assert self._trial is not None
        self._trial.set_user_attr(_SECONDS, seconds)
        self._study.tell(self._trial, cost)

    def best(self) -> tuple[float, Scaling]:
        trial = self._study.best_trial
        assert trial.value is not None
        return trial.value, self._scaling(trial.params)

    def _scaling(self, parameters: dict[str, Any]) -> YaRN:
        job, critical = self._job, parameters["critical"]
        begin = min(int(parameters["begin"] * critical), critical - 1)
        yarn = job.formula
        # Half-way between two pairs: YaRN rounds the beginning of its ramp down, and the end up.
        beta_fast, beta_slow = (rotations_at(job.rope, job.original_length, i) for i in (begin + 0.5, critical - 0.5))
        attention_factor = yarn.frequencies(job.rope).attention_factor * parameters["attention_factor"]
        return YaRN(
            factor=yarn.factor,
            beta_fast=_round(beta_fast),
            beta_slow=_round(beta_slow),
            attention_factor=_round(attention_factor),
        )


def _open_study(optuna: Any, path: Path, name: str) -> Study:
    url = f"sqlite:///file:{quote(str(path.absolute()))}?uri=true"
    try:
        storage = optuna.storages.RDBStorage(url)
        study: Study = optuna.create_study(storage=storage, study_name=name, load_if_exists=True)
    except Exception as error:  # SQLAlchemy and Optuna raise errors of many types for a damaged file
        found = f"{path}, which cannot be read ({error})"
        raise InputError("out", found, "the folder of a search, or a new one") from None
    return study


def _round(value: float) -> float:
    """Return the value with 4 digits, so that the spec stays short."""
    return float(f"{value:.4g}")
