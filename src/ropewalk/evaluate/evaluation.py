"""Evaluation of a model on tasks: a grid of cells, computed by an executor and kept in a store.

Results are stored as they become known. Running the same evaluation again computes only what is missing:

    cells = run_evaluation("smollm2", scalings=["none", "yarn:factor=2"], tasks=["needle"], lengths=[4096], out="run")
"""

from __future__ import annotations

import importlib.metadata
import platform
import sys
from collections.abc import Callable, Sequence
from contextlib import closing, suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ropewalk.errors import InputError
from ropewalk.evaluate.evaluation_store import CellResult, EvaluationStore
from ropewalk.evaluate.executors import Executor, KeyedCell
from ropewalk.evaluate.executors.in_process import in_process_executor
from ropewalk.evaluate.grid import Cell, cell_key, make_grid
from ropewalk.evaluate.model_source import ModelSource, describe_source, load_source_tokenizer, source_digest
from ropewalk.evaluate.sample import SampleResult
from ropewalk.evaluate.server_text_generator import ServerTextGenerator
from ropewalk.evaluate.tasks import Task
from ropewalk.evaluate.worker import CellSummary, Worker
from ropewalk.models.extend import ScalingLike
from ropewalk.scaling.policies import DEFAULT_POLICY, Policy, parse_policy

if TYPE_CHECKING:
    from ropewalk.completions import CompletionsClient

_RECORDED_PACKAGES = ("ropewalk", "torch", "transformers", "lm_eval", "sacrebleu", "rouge_score")


class Evaluation:
    """The grid of cells to compute, and the folder of their results.

    Attributes:
        cells: the cells by key, in the order to show them.
        store: the folder, open for writing; close it when done. It may hold cells of earlier evaluations too.
        dtype: dtype of the model.
    """

    def __init__(
        self,
        model: ModelSource,
        scalings: Sequence[ScalingLike],
        tasks: Sequence[str | Task],
        lengths: Sequence[int],
        out: str | Path,
        *,
        samples: int = 10,
        seed: int = 0,
        policy: Policy | str = DEFAULT_POLICY,
        dtype: str | None = None,
        chat: str = "auto",
        server: CompletionsClient | None = None,
        command: str = "",
    ) -> None:
        """Check all arguments, form the grid, and open the folder. The model is not loaded yet.

        Args:
            model: a name that `ropewalk.load` accepts, or a loaded (model, tokenizer).
            scalings: scalings to compare, each as `extend` accepts it.
            tasks: tasks, each a spec such as `needle:text=book.txt`.
            lengths: lengths of the prompts, in tokens.
            out: folder for the results.
            samples: samples per cell.
            seed: seed of everything random in the samples.
            policy: how dynamic scalings follow the text.
            dtype: see `ropewalk.load`; of a model that is given by its name.
            chat: "on" to put prompts into the chat template of the tokenizer, "off" for plain text, or "auto": where
                the model has one, for the tasks that do so by default (`Task.chat_choices`).
            server: server that answers in place of the model, which then only names the tokenizer.
            command: command line to record with the results; by default that of this process.

        Raises InputError for a wrong argument, a model without a chat template that should use one, or a folder that
        holds results of another model.
        """
        grid = make_grid(scalings, tasks, lengths, samples=samples, seed=seed, policy=parse_policy(policy), chat=chat)
        identity = describe_source(model, dtype)
        # The tokenizer is loaded only if it matters whether it has a template.
        if any(cell.chat for cell in grid) and not getattr(load_source_tokenizer(model), "chat_template", None):
            if chat == "on":
                raise InputError("chat", f"on for {identity['model']}, which has no chat template", "auto or off")
            grid = [replace(cell, chat=False) for cell in grid]
        self.dtype = identity["dtype"]
        model_description = {
            "model": identity["model"],
            "digest": source_digest(model),
            "dtype": self.dtype,
        }
        if server is not None:
            model_description |= {"dtype": "as served", "server": f"{server.model} at {server.url}"}
        fingerprints = {task: task.fingerprint() for task in dict.fromkeys(cell.task for cell in grid)}
        descriptions = {}
        self.cells: dict[str, Cell] = {}
        for cell in grid:
            description = cell.describe(fingerprints[cell.task])
            key = cell_key(model_description, description)
            self.cells[key] = cell
            descriptions[key] = description
        self._model = model
        self._server = server
        self.store = EvaluationStore(out, model_description)
        try:
            self.store.begin(command or " ".join(sys.argv), _installed_versions(), descriptions)
        except BaseException:
            self.store.close()
            raise

    def remaining_cells(self) -> list[KeyedCell]:
        """Return the cells that are not finished, the longest first, so that a length that fails does so at once."""
        finished = self.store.finished_keys()
        remaining = [(key, cell) for key, cell in self.cells.items() if key not in finished]
        return sorted(remaining, key=lambda keyed: -keyed[1].length)

    def remaining_tokens(self) -> int:
        """Return about how many prompt tokens the remaining cells have to read."""
        return sum(
            max(cell.samples - len(self.store.sample_results(key)), 0) * cell.length
            for key, cell in self.remaining_cells()
        )

    def default_executor(self, concurrent_requests: int = 4) -> Executor:
        """Return the executor that uses this process.

        Args:
            concurrent_requests: how many prompts a server answers at the same time.
        """
        if self._server is None:
            return in_process_executor(Worker(self._model, self.dtype))
        generator = ServerTextGenerator(self._server, load_source_tokenizer(self._model), concurrent_requests)
        return in_process_executor(Worker(generator))

    def run(
        self,
        executor: Executor | None = None,
        on_result: Callable[[Cell, SampleResult | CellSummary], None] | None = None,
    ) -> None:
        """Compute the cells that are not finished, store each result at once, and export the results at the end.

        Args:
            executor: how to compute them; by default in this process.
            on_result: called with each result after it is stored.
        """
        cells = self.remaining_cells()
        try:
            if cells:
                run_cells = executor or self.default_executor()
                # Close the executor on every exit: it ends its workers, even while a traceback keeps it alive.
                with closing(run_cells(cells, self.store.sample_results)) as results:
                    for key, result in results:
                        if isinstance(result, CellSummary):
                            self.store.finish(key, result.scores)
                        else:
                            self.store.add(key, result)
                        if on_result is not None:
                            on_result(self.cells[key], result)
        except BaseException:
            with suppress(OSError, RuntimeError, InputError):  # a failed export must not hide what stopped the run
                self.store.export()
            raise
        self.store.export()

    def results(self) -> list[CellResult]:
        """Return the cells of this grid with their results so far, in the order to show them."""
        return [cell for cell in self.store.cells() if cell.key in self.cells]


def run_evaluation(
    model: ModelSource,
    *,
    scalings: Sequence[ScalingLike],
    tasks: Sequence[str | Task],
    lengths: Sequence[int],
    out: str | Path,
    samples: int = 10,
    seed: int = 0,
    policy: Policy | str = DEFAULT_POLICY,
    dtype: str | None = None,
    chat: str = "auto",
    executor: Executor | None = None,
) -> list[CellResult]:
    """Evaluate a model on tasks under one or several scalings, and return the cells.

    The arguments are those of `Evaluation` and its `run`. Every result is stored in `out` as it becomes known; the same
    call again computes only what is missing.
    """
    evaluation = Evaluation(
        model, scalings, tasks, lengths, out, samples=samples, seed=seed, policy=policy, dtype=dtype, chat=chat
    )
    with evaluation.store:
        evaluation.run(executor)
        return evaluation.results()


def _installed_versions() -> dict[str, Any]:
    versions = {"python": platform.python_version()}
    for package in _RECORDED_PACKAGES:
        with suppress(importlib.metadata.PackageNotFoundError):
            versions[package] = importlib.metadata.version(package)
    return versions
