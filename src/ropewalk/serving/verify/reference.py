"""The reference of a verification: transformers in float32 with exact cos and sin tables, without a KV cache."""

from __future__ import annotations

import hashlib
import json
import os
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from ropewalk.config import ModelConfig
from ropewalk.frequencies import Frequencies
from ropewalk.models.digest import model_digest
from ropewalk.models.extend import extended
from ropewalk.models.load import load, load_config
from ropewalk.scaling import Scaling
from ropewalk.serving.verify.length_rule import LengthRule
from ropewalk.serving.verify.prompts import Prompts


class ReferenceModel:
    """A model whose log-probabilities an engine should reproduce. Weights are loaded when they are first needed.

    Args:
        model_name: what `ropewalk.load` accepts.
        cache_folder: folder in which computed log-probabilities are kept.
    """

    def __init__(self, model_name: str, cache_folder: Path) -> None:
        self.model_name, self.cache_folder = model_name, cache_folder
        self.model_config: ModelConfig = load_config(model_name)

    @cached_property
    def digest(self) -> str:
        """Digest of weights, configuration and tokenizer."""
        return model_digest(self.model_name)

    @cached_property
    def model(self) -> Any:
        """The transformers model, in float32."""
        return self._model_and_tokenizer[0].float()

    @property
    def tokenizer(self) -> Any:
        """The transformers tokenizer; loads the model, too."""
        return self._model_and_tokenizer[1]

    @property
    def vocabulary_size(self) -> int:
        """Number of tokens that the model gives probabilities to; loads the model."""
        return int(self.model.config.get_text_config().vocab_size)

    @cached_property
    def _model_and_tokenizer(self) -> tuple[Any, Any]:
        return load(self.model_name, dtype="float32", device="cpu")

    def log_probs(self, scaling: Scaling, prompts: Prompts, rule: LengthRule) -> NDArray[np.float32]:
        """Return the log-probabilities of the next token at each depth, [depths, vocabulary].

        Args:
            scaling: scaling of the model.
            prompts: the text and its depths.
            rule: length that the frequencies at each depth are computed for if the scaling is dynamic.

        They are kept in the cache folder for later calls with the same arguments.
        """
        lengths = [rule.frequency_length(depth) if scaling.is_dynamic else None for depth in prompts.depths]
        key = [self.digest, str(scaling), lengths, prompts.text, prompts.depths]
        digest = hashlib.sha256(json.dumps(key).encode()).hexdigest()[:32]
        path = self.cache_folder / f"reference-{digest}.npy"
        if not path.exists():
            # Replace the file in one step, so that no other process reads half of it.
            unfinished = path.with_name(f".{os.getpid()}.{path.name}")
            np.save(unfinished, self._compute_log_probs(scaling, prompts, lengths))
            os.replace(unfinished, path)
        return np.asarray(np.load(path))

    def _compute_log_probs(self, scaling: Scaling, prompts: Prompts, lengths: list[int | None]) -> NDArray[np.float32]:
        """Compute `log_probs`; `lengths`: what the frequencies at each depth are computed for, None if static."""
        # One pass over the text serves all depths that have the same frequencies.
        passes: dict[Frequencies, tuple[int | None, list[int]]] = {}
        for depth, length in zip(prompts.depths, lengths, strict=True):
            frequencies = scaling.frequencies(self.model_config.main_layer.rope, length)
            passes.setdefault(frequencies, (length, []))[1].append(depth)
        rows: dict[int, NDArray[np.float32]] = {}
        for length, depths in passes.values():
            with extended(self.model, scaling, length=length):
                rows.update(zip(depths, self._log_probs_at(prompts.text[: depths[-1]], depths), strict=True))
        return np.stack([rows[depth] for depth in prompts.depths])

    def single_token_log_probs(self, prompts: Prompts) -> NDArray[np.float32]:
        """Return the log-probabilities after each single-token prompt, [tokens, vocabulary]."""
        return np.concatenate([self._log_probs_at((token,), [1]) for token in prompts.single_tokens])

    @torch.inference_mode()
    def _log_probs_at(self, token_ids: tuple[int, ...], depths: list[int]) -> NDArray[np.float32]:
        """Return the log-probabilities after each of these prefixes of a text, from one pass over the text."""
        last_positions = torch.tensor(depths) - 1
        logits_DV = self.model(torch.tensor([token_ids]), use_cache=False, logits_to_keep=last_positions).logits[0]
        return np.asarray(torch.log_softmax(logits_DV.float(), -1).numpy())
