"""Our reference: transformers in float32, with tables that are right at every position."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from ropewalk.config import ModelConfig
from ropewalk.models.digest import model_digest
from ropewalk.models.extend import extended
from ropewalk.models.load import load, load_config
from ropewalk.scaling import Scaling
from ropewalk.serving.verify.prompts import Prompts


class Reference:
    """The log-probabilities that a model gives when its positions are right.

    Args:
        model: as `load` takes it.
        work: a folder that keeps what was computed.
    """

    def __init__(self, model: str, work: Path) -> None:
        self.name, self.work = model, work
        self.model_config: ModelConfig = load_config(model)

    @cached_property
    def digest(self) -> str:
        """Which model it is."""
        return model_digest(self.name)

    @cached_property
    def model(self) -> Any:
        return self._loaded[0].float()

    @property
    def tokenizer(self) -> Any:
        return self._loaded[1]

    @cached_property
    def _loaded(self) -> tuple[Any, Any]:
        return load(self.name, dtype="float32", device="cpu")

    def log_probs(self, scaling: Scaling, prompts: Prompts, length: int | None) -> NDArray[np.float32]:
        """After each of the prompts' depths, [depths, vocabulary].

        `length`: fixes a dynamic scaling; without it, every depth has the frequencies of its own length.
        """

        def compute() -> NDArray[np.float32]:
            lengths = dict.fromkeys(prompts.depths, length)
            if scaling.is_dynamic and length is None:
                lengths = {depth: depth for depth in prompts.depths}
            rope = self.model_config.ropes[self.model_config.main].rope
            alike: dict[Any, list[int]] = {}
            for depth, made_for in lengths.items():
                alike.setdefault(scaling.frequencies(rope, made_for), []).append(depth)
            rows: dict[int, NDArray[np.float32]] = {}
            for depths in alike.values():
                with extended(self.model, scaling, length=lengths[depths[0]]), torch.inference_mode():
                    rows.update(zip(depths, self._after(prompts.text[: depths[-1]], depths), strict=True))
            return np.stack([rows[depth] for depth in prompts.depths])

        return self._kept([str(scaling), length, prompts.text, prompts.depths], compute)

    def alone(self, prompts: Prompts) -> NDArray[np.float32]:
        """After each token that stands alone, [tokens, vocabulary]: positions play no part."""
        with torch.inference_mode():
            return np.concatenate([self._after((token,), [1]) for token in prompts.alone])

    def _after(self, ids: tuple[int, ...], depths: list[int]) -> NDArray[np.float32]:
        wanted = torch.tensor(depths) - 1
        logits_TV = self.model(torch.tensor([ids]), use_cache=False, logits_to_keep=wanted).logits[0]
        return np.asarray(torch.log_softmax(logits_TV.float(), -1).numpy())

    def _kept(self, what: list[Any], compute: Callable[[], NDArray[np.float32]]) -> NDArray[np.float32]:
        key = hashlib.sha256(json.dumps([self.digest, *what]).encode()).hexdigest()[:32]
        path = self.work / f"reference-{key}.npy"
        if not path.exists():
            beside = path.with_name(f".{os.getpid()}.{path.name}")
            np.save(beside, compute())
            os.replace(beside, path)  # whole or not at all
        return np.asarray(np.load(path))
