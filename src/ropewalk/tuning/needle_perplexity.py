"""What a search without gradients minimizes: the loss on answers that are far from their facts, and on the text.

Most tokens of a text can be predicted from the near ones, so the loss on a long text alone says little about far ones.
LongRoPE2 (arXiv 2502.20082) therefore searches with the perplexity of the answers to planted facts ("needle-driven").
The loss on the text itself is added here, so that a scaling that finds facts but reads worse does not win. Both come
from one pass over each text.
"""

from __future__ import annotations

import hashlib
import math
import random
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from ropewalk.evaluate.perplexity import compute_nll
from ropewalk.models.attention_bias import attention_biases
from ropewalk.models.digest import model_digest
from ropewalk.models.extend import extended
from ropewalk.scaling import Scaling
from ropewalk.tuning.base import TuneJob
from ropewalk.tuning.retrieval_prompts import FactPlanter
from ropewalk.tuning.windows import Window, find_biased_layers, sample_window

WORST = 1e6  # the cost of a scaling under which the loss is not a number


class NeedlePerplexity:
    """The cost of a scaling on texts that are chosen once, so that the costs of all scalings can be compared.

    Attributes:
        digest: of the model, the texts and the weight; costs with the same digest can be compared.
    """

    def __init__(self, job: TuneJob, *, texts: int, facts: int, window: int, text_weight: float) -> None:
        """Choose the texts and plant the facts.

        Args:
            job: the model and the documents.
            texts: number of texts.
            facts: facts planted in each.
            window: tokens read of each text (see windows.py).
            text_weight: weight of the loss on the text; that on the answers has weight 1.

        Raises InputError for a window shorter than the target if the attention of the model takes no bias.
        """
        self._biased_layers = find_biased_layers(job, window)
        self._model = job.model
        self._text_weight = text_weight
        planter, rng = FactPlanter(job.tokenizer), random.Random(f"{job.seed}/needle perplexity")
        documents = [job.documents[index % len(job.documents)] for index in range(texts)]
        self._windows = [sample_window(document, job.target, window, planter, facts, rng) for document in documents]
        digest = hashlib.sha256(f"{model_digest(job.model, job.tokenizer)} {job.model.dtype} {text_weight}".encode())
        for each in self._windows:
            for array in (each.ids_T, each.positions_T, each.is_answer_T, each.find_counted_tokens()):
                digest.update(array.tobytes())
        self.digest = digest.hexdigest()

    def cost(self, scaling: Scaling) -> float:
        """Return the mean loss on the answers, plus the weighted mean loss on the text, in nats.

        A loss that is not a number costs `WORST`, so that a search goes on without that scaling.
        """
        answer_nll: list[Any] = []
        text_nll: list[Any] = []
        with extended(self._model, scaling):
            for each in self._windows:
                nll_T = self._nll(each)
                answer_nll.append(nll_T[each.is_answer_T[1:]])
                text_nll.append(nll_T[each.find_counted_tokens()[1:]])
        cost = float(np.concatenate(answer_nll).mean() + self._text_weight * np.concatenate(text_nll).mean())
        return cost if math.isfinite(cost) else WORST

    def _nll(self, window: Window) -> NDArray[np.float64]:
        """Return the loss on each token after the first, [T-1]."""
        model, ids_T = self._model, torch.from_numpy(window.ids_T)
        layer_biases = window.layer_biases(self._biased_layers, model.device, model.dtype)
        if not layer_biases:
            return compute_nll(model, ids_T)
        with attention_biases(layer_biases):  # in one call: they are those of a call without a KV cache
            return compute_nll(model, ids_T, chunk=len(ids_T), positions_T=torch.from_numpy(window.positions_T))
