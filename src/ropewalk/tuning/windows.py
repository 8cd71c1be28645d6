"""The windows of a text that one step of training reads.

A window as long as the target is a piece of the text. A shorter one stands for a piece as long as the target: it has
parts of that piece at their true positions, so its position ids jump between the parts (PoSE, arXiv 2309.10400). Facts
in the first parts and questions in the last one are then as far apart as in the whole piece.

A softmax over the few keys of such a window is sharper than one over all keys of the piece, and what is learned from it
suits few keys (docs/tune.md). So each sampled key counts as often as the tokens that it stands for: the log of their
number is added to its attention score.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ropewalk.errors import InputError, UnsupportedModelError
from ropewalk.models.attention_bias import find_attention_layers
from ropewalk.tuning.base import TuneJob
from ropewalk.tuning.retrieval_prompts import FactPlanter

_PARTS = 5  # of a window that is shorter than the target
_ATTENTION_SINKS = 4  # first tokens, which attract attention as such and stand for no others
# Tokens. The first ones of a part lack the text just before them, so they are harder to predict than in the piece.
_NEAR_PAST = 128
_CPU_WINDOW = 3072  # tokens; on a CPU, a text of 32k tokens takes minutes


@dataclass(frozen=True)
class Window:
    """Token ids with their positions in a text as long as the target.

    Attributes:
        ids_T: token ids, [T] int64.
        positions_T: position of each token, increasing, [T] int64.
        is_text_T: whether a token is one of the user's own text, [T] bool.
        is_answer_T: whether a token belongs to the answer to a question, [T] bool.
    """

    ids_T: NDArray[np.int64]
    positions_T: NDArray[np.int64]
    is_text_T: NDArray[np.bool_]
    is_answer_T: NDArray[np.bool_]

    def find_counted_tokens(self) -> NDArray[np.bool_]:
        """Return whether each token counts in the loss on the text, [T] bool. The first ones after a jump do not."""
        is_counted_T = self.is_text_T.copy()
        starts = self._find_part_starts()
        for start, end in itertools.pairwise([*starts, len(is_counted_T)]):
            is_counted_T[start : start + min(_NEAR_PAST, (end - start) // 2)] = False
        return is_counted_T

    def layer_biases(
        self, sliding_windows: Mapping[Any, int | None], device: torch.device, dtype: torch.dtype
    ) -> dict[Any, Tensor]:
        """Return what to add to the attention scores of each layer; nothing for a window without jumps.

        Args:
            sliding_windows: for each layer, the tokens that it sees, or None for all.
            device, dtype: of the model.
        """
        if not len(self._find_part_starts()):
            return {}
        biases = {
            tokens: torch.from_numpy(self.compute_bias(tokens)).to(device, dtype)
            for tokens in set(sliding_windows.values())
        }
        return {layer: biases[tokens] for layer, tokens in sliding_windows.items()}

    def compute_bias(self, sliding_window: int | None = None) -> NDArray[np.float32]:
        """Return what to add to the attention score of each query (row) and key, [T, T]; -inf for unseen keys.

        A layer with a sliding window sees the keys within it, at the positions of the long text. In other layers, the
        sampled keys of earlier parts get the log of the number of tokens that they stand for.
        """
        index_T, distance_TT = np.arange(len(self.ids_T)), self.positions_T[:, None] - self.positions_T
        is_seen_TT = distance_TT >= 0
        if sliding_window is not None:
            return np.where(is_seen_TT & (distance_TT < sliding_window), np.float32(0), np.float32(-np.inf))
        bias_TT = np.where(is_seen_TT, np.float32(0), np.float32(-np.inf))
        is_sample_T = self.is_text_T & (index_T >= _ATTENTION_SINKS)
        for start in self._find_part_starts():
            samples_K = np.flatnonzero(is_sample_T[:start])
            # The other tokens of the window before this part stand for themselves alone.
            represented = self.positions_T[start] - (start - len(samples_K))
            bias_TT[start:, samples_K] = np.log(represented / max(len(samples_K), 1))
        return bias_TT

    def _find_part_starts(self) -> NDArray[np.int64]:
        """Return the index of the first token after each jump between two positions."""
        return np.flatnonzero(np.diff(self.positions_T) > 1) + 1


def choose_window_tokens(job: TuneJob, window: int | None) -> int:
    """Return the tokens of each window: as requested, or by default the target on a GPU and 3,072 on a CPU.

    Raises InputError for a window longer than the target.
    """
    if window is None:
        return min(job.target, _CPU_WINDOW) if job.model.device.type == "cpu" else job.target
    if window > job.target:
        raise InputError("window", window, f"at most the target, {job.target:,} tokens")
    return window


def find_biased_layers(job: TuneJob, window: int) -> dict[Any, int | None]:
    """Return the layers that need a bias in windows, with their sliding windows; none if the window is the target.

    Raises InputError for a shorter window if the attention of the model takes no bias.
    """
    if window == job.target:
        return {}
    try:
        return find_attention_layers(job.model, job.target)
    except UnsupportedModelError as error:
        raise InputError("window", window, f"the target, {job.target:,} tokens", str(error)) from None


def sample_window(
    document_N: NDArray[np.int64], target: int, tokens: int, planter: FactPlanter, facts: int, rng: random.Random
) -> Window:
    """Return a window of `tokens` tokens from a random piece of a text as long as `target`.

    Args:
        document_N: token ids of the text, at least `target`.
        target: tokens of the piece.
        tokens: tokens of the window, at most `target`.
        planter: plants the facts.
        facts: number of facts.
        rng: for everything that is drawn at random.
    """
    facts_to_plant = planter.draw_facts(facts, rng)
    text_tokens = planter.text_tokens(tokens, facts_to_plant)
    start, skipped = rng.randrange(len(document_N) - target + 1), target - tokens
    # The first part begins the piece and the last one ends it, so that every window has the longest distances.
    jumps_P = np.array([0, *sorted(rng.randrange(skipped + 1) for _ in range(_PARTS - 2)), skipped])
    part_of_source_N = np.arange(text_tokens) * _PARTS // text_tokens
    source_N = start + np.arange(text_tokens) + jumps_P[part_of_source_N]
    planted = planter.insert(document_N[source_N], facts_to_plant, rng)
    # A planted token belongs to the part of the text before it.
    part_T = part_of_source_N[np.maximum(np.cumsum(planted.is_text_T) - 1, 0)]
    positions_T = np.arange(tokens) + jumps_P[part_T]
    return Window(planted.ids_T, positions_T, planted.is_text_T, planted.is_answer_T)
