"""An evaluation: a grid of cells, run by a crew, kept by a store. The same call again does only what is missing."""

from __future__ import annotations

import importlib.metadata
import platform
import sys
from collections.abc import Callable, Sequence
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

from ropewalk.evaluate.evaluation_store import CellResult, EvaluationStore
from ropewalk.evaluate.executors import Executor, Job
from ropewalk.evaluate.executors.in_process import in_process_executor
from ropewalk.evaluate.grid import Cell, cell_key, make_grid
from ropewalk.evaluate.sample import SampleResult
from ropewalk.evaluate.tasks import Task
from ropewalk.evaluate.worker import CellSummary, Worker
from ropewalk.models.digest import model_digest
from ropewalk.models.extend import ScalingLike
from ropewalk.models.load import choose_dtype
from ropewalk.scaling.policies import DEFAULT_POLICY, Policy, parse_policy

_PACKAGES = ("ropewalk", "torch", "transformers", "lm_eval", "sacrebleu", "rouge_score")


class Evaluation:
    """A grid and the folder of its results.

    Attributes:
        cells: of the grid, by key, in the order they are shown.
    """

    def __init__(
        self,
        model: str | tuple[Any, Any],
        scalings: Sequence[ScalingLike],
        tasks: Sequence[str | Task],
        lengths: Sequence[int],
        out: str | Path,
        *,
        samples: int = 10,
        seed: int = 0,
        policy: Policy | str = DEFAULT_POLICY,
        dtype: str | None = None,
        server: str | None = None,
        command: str = "",
    ) -> None:
        """Lay out the grid and open the folder.

        Args:
            model: a name that `load` takes, or a loaded (model, tokenizer).
            scalings: to compare, each as `extend` takes it.
            tasks: to ask, each a spec such as `needle:text=book.txt`.
            lengths: of the prompts, in tokens.
            out: folder for the results.
            samples: questions in each cell.
            seed: of everything that is drawn.
            policy: how dynamic scalings follow the text.
            dtype: as `load` takes it.
            server: what answers in place of the model, if anything does (its name and address).
            command: to be noted with the results.

        Raises InputError for anything that cannot be run, and for a folder of another run.
        """
        grid = make_grid(scalings, tasks, lengths, samples=samples, seed=seed, policy=parse_policy(policy))
        self.dtype = choose_dtype(dtype) if isinstance(model, str) else str(model[0].dtype).removeprefix("torch.")
        name = model if isinstance(model, str) else model[0].config.name_or_path or type(model[0]).__name__
        description = {
            "model": name,
            "digest": model_digest(model) if isinstance(model, str) else model_digest(*model),
            **({"dtype": self.dtype} if server is None else {"dtype": "as served", "server": server}),
        }
        fingerprints = {task: task.fingerprint() for task in dict.fromkeys(cell.task for cell in grid)}
        about = [cell.describe(fingerprints[cell.task]) for cell in grid]
        keys = [cell_key(description, each) for each in about]
        self.model = model
        self.cells: dict[str, Cell] = dict(zip(keys, grid, strict=True))
        self.store = EvaluationStore(out, description)
        try:
            self.store.begin(command or " ".join(sys.argv), _versions(), dict(zip(keys, about, strict=True)))
        except BaseException:
            self.store.close()
            raise

    def left(self) -> list[Job]:
        """The cells that are not finished, the longest first: what cannot be done fails at once, not at the end."""
        finished = self.store.finished()
        jobs = [(key, cell) for key, cell in self.cells.items() if key not in finished]
        return sorted(jobs, key=lambda job: -job[1].length)

    def run(
        self, executor: Executor | None = None, tell: Callable[[Cell, SampleResult | CellSummary], None] | None = None
    ) -> None:
        """Do what is missing.

        `crew`: who does it; by default this process. `tell`: called with each outcome and each summary that was kept.
        """
        jobs = self.left()
        work = executor or in_process_executor(Worker(self.model, self.dtype))
        try:
            with closing(work(jobs, self.store.sample_results)) as told:
                for key, news in told if jobs else ():
                    if isinstance(news, CellSummary):
                        self.store.finish(key, news.scores)
                    else:
                        self.store.add(key, news)
                    if tell is not None:
                        tell(self.cells[key], news)
        except BaseException:
            with suppress(OSError, RuntimeError):  # what stopped the run is what counts
                self.store.export()
            raise
        self.store.export()

    def results(self) -> list[CellResult]:
        """What is known of the cells of this grid."""
        return [cell for cell in self.store.cells() if cell.key in self.cells]


def run_evaluation(
    model: str | tuple[Any, Any],
    *,
    scalings: Sequence[ScalingLike],
    tasks: Sequence[str | Task],
    lengths: Sequence[int],
    out: str | Path,
    samples: int = 10,
    seed: int = 0,
    policy: Policy | str = DEFAULT_POLICY,
    dtype: str | None = None,
    executor: Executor | None = None,
) -> list[CellResult]:
    """Ask a model questions over long texts, under one or several scalings; the arguments are those of `Evaluation`.

    Returns the cells. Everything is kept in `out` as it comes: the same call again does only what is missing.
    """
    evaluation = Evaluation(
        model, scalings, tasks, lengths, out, samples=samples, seed=seed, policy=policy, dtype=dtype
    )
    with evaluation.store:
        evaluation.run(executor)
        return evaluation.results()


def _versions() -> dict[str, str]:
    known = {"python": platform.python_version()}
    for package in _PACKAGES:
        try:
            known[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return known
