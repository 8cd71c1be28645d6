"""A task that needs no model, to be run wherever a crew works, and whose workers can be made to die.

Where `ROPEWALK_TOY` is set, a worker that meets this module loads no model either.
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


class ToyReader:
    tokenizer = None

    def __init__(self):
        self.scaling = None

    def scaled(self, scaling, policy):
        self.scaling = str(scaling)
        return nullcontext()


def load(worker):
    return ToyReader()


if os.environ.get("ROPEWALK_TOY"):
    Worker._load = load


@dataclass(frozen=True)
class Toy(Task):
    """Each answer is noted in the file `log`, with the process that gave it, before it is kept.

    The worker dies before the sample `dies_at` of the cells of 16 tokens: `once`, or whenever it comes there.
    """

    name = "toy"
    main = "half"

    log: str = ""
    dies_at: int = -1
    once: bool = True
    slow: float = 0.0
    wrong: str = ""

    def samples(self, tokenizer, length, count, seed):
        if self.wrong == "input":
            raise InputError("lengths", length, "less")
        if self.wrong:
            raise KeyError(self.wrong)
        return [
            Sample(index, [seed, length, index], (str(index),), metadata={"depth": index / 8}) for index in range(count)
        ]

    def answers(self, reader, samples):
        for sample in samples:
            if sample.index == self.dies_at and sample.prompt[1] == 16:
                self._die()
            with open(self.log or os.devnull, "a") as log:
                log.write(f"{sample.prompt[1]} {reader.scaling} {sample.index} {os.getpid()}\n")
            time.sleep(self.slow)
            yield sample, f"{reader.scaling} {sample.prompt}"

    def _die(self):
        if self.once:
            try:
                Path(f"{self.log}.died").touch(exist_ok=False)
            except FileExistsError:
                return
        os.kill(os.getpid(), signal.SIGKILL)

    def score(self, sample, answer):
        return {"half": sample.index / 2 + len(answer), "even": float(sample.index % 2 == 0)}

    def options(self):
        """What a sample hangs on: nothing of the above."""
        return {}

    def __str__(self):
        return "toy"


def evaluation(model, out, task=None, **options):
    """An evaluation of a toy, 6 cells of 8 samples; `model`: any folder that has the files of a model."""
    from ropewalk.evaluate.evaluation import Evaluation  # torch, which most workers of a toy have no use for

    asked = {"scalings": SCALINGS, "lengths": LENGTHS, "samples": 8, "dtype": "float32", "command": "toy", **options}
    return Evaluation(str(model), asked.pop("scalings"), [task or Toy()], asked.pop("lengths"), out, **asked)


def logged(path):
    """(length, scaling, sample), process of each answer that was given, in that order."""
    lines = [line.split() for line in Path(path).read_text().splitlines()] if Path(path).exists() else []
    return [((int(length), scaling, int(index)), int(pid)) for length, scaling, index, pid in lines]


def kept(store):
    """All that the store holds but the seconds, which differ each time."""
    return [
        (cell.key, cell.description, cell.summary, [{**outcome, "seconds": 0} for outcome in cell.sample_results])
        for cell in store.cells()
    ]
