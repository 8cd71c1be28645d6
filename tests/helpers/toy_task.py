"""A task that needs no model and runs in every executor, and whose workers can be made to die.

Where the environment variable `ROPEWALK_TOY` is set, importing this module also makes workers load no model.
"""

from __future__ import annotations

import os
import signal
import time
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path

from ropewalk.errors import InputError
from ropewalk.evaluate.sample import Sample
from ropewalk.evaluate.tasks.base import Task
from ropewalk.evaluate.worker import Worker

SCALINGS = ["none", "linear:factor=2"]
LENGTHS = [8, 16, 32]
SAMPLES = 8
CELLS = len(SCALINGS) * len(LENGTHS)


class ToyGenerator:
    """Takes the place of a text generator, and knows only the scaling that the model would have."""

    tokenizer = None

    def __init__(self):
        self.scaling = None

    def scaled(self, scaling, policy):
        self.scaling = str(scaling)
        return nullcontext()


def load_toy_generator(worker):
    return ToyGenerator()


if os.environ.get("ROPEWALK_TOY"):
    Worker._load_generator = load_toy_generator


@dataclass(frozen=True)
class ToyTask(Task):
    """A task whose answers are a function of the scaling and the prompt.

    Args:
        log: file that gets a line for each answer, with the process that gave it, before the answer is stored.
        dies_at: index of the sample, in cells of 16 tokens, that kills its worker.
        dies_once: whether it does so only the first time.
        delay: seconds per answer, and before a worker dies.
        error: name of an error to raise: "input" for an InputError, anything else for a KeyError.
    """

    name = "toy"
    main_score = "half"

    log: str = ""
    dies_at: int = -1
    dies_once: bool = True
    delay: float = 0.0
    error: str = ""

    def make_samples(self, tokenizer, length, count, seed, chat=False):
        if self.error == "input":
            raise InputError("lengths", length, "less")
        if self.error:
            raise KeyError(self.error)
        return [
            Sample(index, [seed, length, index], (str(index),), metadata={"depth": index / 8}) for index in range(count)
        ]

    def generate_answers(self, generator, samples):
        for sample in samples:
            if sample.index == self.dies_at and sample.prompt[1] == 16:
                self._die()
            with open(self.log or os.devnull, "a") as log:
                log.write(f"{sample.prompt[1]} {generator.scaling} {sample.index} {os.getpid()}\n")
            time.sleep(self.delay)
            yield sample, f"{generator.scaling} {sample.prompt}"

    def _die(self):
        if self.dies_once:
            try:
                Path(f"{self.log}.died").touch(exist_ok=False)
            except FileExistsError:
                return
        time.sleep(self.delay)
        os.kill(os.getpid(), signal.SIGKILL)

    def score(self, sample, answer):
        return {"half": sample.index / 2 + len(answer), "even": float(sample.index % 2 == 0)}

    def options(self):
        """No options: none of the fields changes the results, so none belongs into the key of a cell."""
        return {}

    def __str__(self):
        return "toy"


def make_evaluation(model, out, task=None, **options):
    """Return an evaluation of a toy task, by default with 6 cells of 8 samples.

    `model`: any folder with the files of a model.
    """
    from ropewalk.evaluate.evaluation import Evaluation  # imports torch, which most workers of a toy task do not need

    options = {"samples": SAMPLES, "dtype": "float32", "command": "toy", **options}
    scalings, lengths = options.pop("scalings", SCALINGS), options.pop("lengths", LENGTHS)
    return Evaluation(str(model), scalings, [task or ToyTask()], lengths, out, **options)


def read_log(path):
    """Return ((length, scaling, sample), process) for each answer that was given, in that order."""
    lines = [line.split() for line in Path(path).read_text().splitlines()] if Path(path).exists() else []
    return [((int(length), scaling, int(index)), int(pid)) for length, scaling, index, pid in lines]


def without_seconds(results):
    """Return sample results without their times, which differ in every run."""
    return [{**result, "seconds": 0} for result in results]


def stored_cells(store):
    """Return everything in the store but the times."""
    return [(cell.key, cell.description, cell.summary, without_seconds(cell.sample_results)) for cell in store.cells()]
