"""The interface of a tuning method: it gets a model and a text, and returns a scaling for a target length."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from ropewalk import spec as specs
from ropewalk.rope import Rope
from ropewalk.scaling import Scaling
from ropewalk.scaling.yarn import YaRN

OnProgress = Callable[[float, str], None]  # called with the share of the work done, from 0 to 1, and a detail to show


@dataclass(frozen=True)
class TuneJob:
    """What to find a scaling for, and the text to find it with.

    Attributes:
        model: a causal language model of transformers, without a scaling and in evaluation mode.
        tokenizer: its tokenizer.
        rope: the unscaled embedding of the model's main layers, with its original length.
        target: tokens of the longest text that the model must read, more than the original length.
        documents: token ids of each text to learn from, without special tokens, each [N] int64.
        validation: token ids of other text for early stopping, each [N] int64 with at least `target` tokens; may be
            empty.
        folder: where a method keeps its state, so that the same call continues after an interruption.
        seed: for everything that is drawn at random.
    """

    model: Any
    tokenizer: Any
    rope: Rope
    target: int
    documents: tuple[NDArray[np.int64], ...]
    validation: tuple[NDArray[np.int64], ...]
    folder: Path
    seed: int = 0

    @property
    def original_length(self) -> int:
        """The tokens that the model was trained on, L."""
        assert self.rope.original_length is not None  # `tune` refuses a model without it
        return self.rope.original_length

    @property
    def formula(self) -> YaRN:
        """The scaling that a method starts from: YaRN with the factor that the target needs."""
        return YaRN(factor=self.target / self.original_length)


class Tuner(ABC):
    """A tuning method with its options.

    Each subclass is a frozen dataclass whose fields are the options, in a file of its own in this folder.

    Class variables:
        name: the name in specs, as in `gradient:steps=100`.
        is_parallel: whether several processes can run it together.
    """

    name: ClassVar[str]
    is_parallel: ClassVar[bool] = False

    @abstractmethod
    def run(self, job: TuneJob, on_progress: OnProgress) -> Scaling:
        """Return the scaling that was found. The same call on the same folder continues where it was interrupted."""

    def __str__(self) -> str:
        return specs.format_spec(self)
