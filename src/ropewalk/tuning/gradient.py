"""Learn divisors and attention factors by gradient descent, with the weights of the model frozen."""

from __future__ import annotations

import math
import os
import random
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor

from ropewalk import config as configs
from ropewalk.method import above, at_least, check_options, whole
from ropewalk.models.attention_bias import attention_biases
from ropewalk.models.evaluation_mode import evaluation_mode
from ropewalk.models.extend import extended
from ropewalk.models.layer_tables import LayerTablePatch, TableLayers, find_table_layers
from ropewalk.models.patching import PatchSet
from ropewalk.scaling.learned import Learned
from ropewalk.tuning.base import OnProgress, TuneJob, Tuner
from ropewalk.tuning.loss import checkpoint_patches, differentiable_nll
from ropewalk.tuning.retrieval_prompts import FactPlanter
from ropewalk.tuning.tables import LearnedTables
from ropewalk.tuning.training_log import TrainingLog
from ropewalk.tuning.windows import Window, choose_window_tokens, find_biased_layers, sample_window

_WARM_UP_STEPS = 4
_ATTENTION_FACTOR_RATE = 0.25  # learning rate of the attention factors, relative to that of the divisors
_VALIDATE_EVERY = 10  # steps
_VALIDATION_SEED = "0/validation"  # for every seed, so that the losses of several runs can be compared
_PATIENCE = 3  # validations without progress before training stops


@dataclass(frozen=True)
class Gradient(Tuner):
    """AdamW on the log divisors and log attention factors of YaRN, with the weights frozen.

    The loss is that of the user's text plus that of the answers to questions about facts planted in it
    (retrieval_prompts.py). Under `accelerate launch`, each process reads other texts and the gradients are averaged.

    Options:
        per_layer: whether each layer gets a set of its own.
        steps: number of steps.
        learning_rate: of the log divisors; rises over the first steps and falls to zero as a cosine.
        answer_weight: weight of the answers; 0 learns from the text alone.
        regularization: weight of the squared distance to YaRN's log divisors, and of its differences between
            neighboring pairs.
        facts: facts planted in each text.
        window: tokens that each step reads of a text; by default the target, or 3,072 on a CPU. A window shorter than
            the target has parts of a text as long as the target, at their positions there, and weights keys
            (windows.py); it needs the attention implementation sdpa or eager. Validation always reads texts as long
            as the target.
        batch: texts per step and process.
        checkpointing: whether the backward pass computes the activations of each layer again, to save memory.
    """

    name = "gradient"
    is_parallel = True

    per_layer: bool = False
    steps: int = field(default=60, metadata=whole("steps"))
    learning_rate: float = field(default=0.03, metadata=above(0))
    answer_weight: float = field(default=0.1, metadata=at_least(0))
    regularization: float = field(default=0.01, metadata=at_least(0))
    facts: int = field(default=12, metadata=whole("facts"))
    window: int | None = field(default=None, metadata=whole("tokens"))
    batch: int = field(default=1, metadata=whole("texts"))
    checkpointing: bool = True

    def __post_init__(self) -> None:
        check_options(self)

    def run(self, job: TuneJob, on_progress: OnProgress) -> Learned:
        # Layers are found by test calls, which the changes to the model would disturb.
        layers, window_tokens = find_table_layers(job.model), choose_window_tokens(job, self.window)
        biased_layers = find_biased_layers(job, window_tokens)
        with _prepared_model(job, self, layers) as tables:
            training = _Training(self, job, tables, window_tokens, biased_layers)
            training.run(on_progress)
        divisors, factors = tables.divisors(), tables.attention_factors()
        return Learned(
            divisors=tuple(map(tuple, divisors)) if self.per_layer else tuple(divisors[0]),
            attention_factor=tuple(factors) if self.per_layer else factors[0],
            original_length=job.original_length,
            target=job.target,
        )


class _Training:
    """The loop over the steps. Which text a step reads depends on the seed and the step alone."""

    def __init__(
        self,
        options: Gradient,
        job: TuneJob,
        tables: LearnedTables,
        window_tokens: int,
        biased_layers: Mapping[Any, int | None],
    ) -> None:
        self._options, self._job, self._tables = options, job, tables
        self._window_tokens, self._biased_layers = window_tokens, biased_layers
        self._planter = FactPlanter(job.tokenizer)
        self._start_SP = tables.log_divisor_SP.detach().clone()
        # Only if it is needed: an Accelerator fixes the device and the precision of any later one in this process.
        is_parallel = int(os.environ.get("WORLD_SIZE", "1")) > 1
        self._accelerator = Accelerator(cpu=job.model.device.type == "cpu") if is_parallel else None
        self._process = self._accelerator.process_index if self._accelerator else 0
        self._num_processes = self._accelerator.num_processes if self._accelerator else 1
        self._optimizer = torch.optim.AdamW(
            [
                {"params": [tables.log_divisor_SP], "scale": 1.0},
                {"params": [tables.log_attention_factor_S], "scale": _ATTENTION_FACTOR_RATE},
            ],
            lr=options.learning_rate,
            betas=(0.9, 0.99),
            weight_decay=0.0,
        )
        self._log = TrainingLog(job, options, self._window_tokens, self._num_processes)
        rng = random.Random(_VALIDATION_SEED)
        # Not short windows: a scaling with a lower loss on them can have a higher loss at the target.
        self._validation = [self._sample_window(document, job.target, rng) for document in job.validation]

    def run(self, on_progress: OnProgress) -> None:
        """Train to the last step, or until validation stops improving, and set the best parameters.

        Without validation texts, the last parameters remain.
        """
        log, steps = self._log, self._options.steps
        log.restore(self._tables, self._optimizer)
        while not log.is_finished:
            record: dict[str, Any] = {"step": log.step}
            if self._validation and (log.step % _VALIDATE_EVERY == 0 or log.step == steps):
                record["validation_loss"] = self._validation_loss()
                log.note_validation(record["validation_loss"], self._tables)
            if log.step == steps or log.validations_without_progress >= _PATIENCE:
                log.is_finished = True
            else:
                record |= self._train_step(log.step)
            if self._process == 0:
                log.save(record, self._tables, self._optimizer)
            log.step += 0 if log.is_finished else 1
            on_progress(log.step / steps, _describe(record))
        if self._validation:
            log.set_best(self._tables)

    def _train_step(self, step: int) -> dict[str, float]:
        started = time.perf_counter()
        for group in self._optimizer.param_groups:
            group["lr"] = self._learning_rate(step) * group["scale"]
        self._optimizer.zero_grad()
        sums = {"text_nll": 0.0, "answer_nll": 0.0}
        batch, documents = self._options.batch, self._job.documents
        for index in range(batch * self._process, batch * (self._process + 1)):
            document = documents[(step * batch * self._num_processes + index) % len(documents)]
            rng = random.Random(f"{self._job.seed}/{step}/{index}")
            window = self._sample_window(document, self._window_tokens, rng)
            text_nll, answer_nll = self._losses(window)
            loss = text_nll + self._options.answer_weight * answer_nll
            torch.autograd.backward(loss / batch)
            sums["text_nll"] += text_nll.item() / batch
            sums["answer_nll"] += answer_nll.item() / batch
        torch.autograd.backward(self._options.regularization * self._distance_to_start())
        for parameter in self._tables.parameters():
            assert parameter.grad is not None
            parameter.grad = self._mean_over_processes(parameter.grad)
            if not bool(parameter.grad.isfinite().all()):
                raise _not_a_number("gradient", step)
        self._optimizer.step()
        return sums | {"learning_rate": self._learning_rate(step), "seconds": round(time.perf_counter() - started, 3)}

    @torch.no_grad()
    def _validation_loss(self) -> float:
        losses = [self._losses(window) for window in self._validation]
        weighted = torch.stack([text + self._options.answer_weight * answers for text, answers in losses])
        loss = float(self._mean_over_processes(weighted.mean()))  # else they might not stop at the same step
        if not math.isfinite(loss):
            raise _not_a_number("validation loss", self._log.step)
        return loss

    def _mean_over_processes(self, tensor: Tensor) -> Tensor:
        if self._accelerator is None:
            return tensor
        mean: Tensor = self._accelerator.reduce(tensor, reduction="mean")
        return mean

    def _losses(self, window: Window) -> tuple[Tensor, Tensor]:
        """Return the mean loss on the text and on the answers, in nats."""
        model, device = self._job.model, self._job.model.device
        self._tables.positions_T = torch.from_numpy(window.positions_T).to(device)
        with attention_biases(window.layer_biases(self._biased_layers, device, model.dtype)):
            nll_T = differentiable_nll(model, torch.from_numpy(window.ids_T).to(device))
        means = []
        for is_counted_T in (window.find_counted_tokens()[1:], window.is_answer_T[1:]):
            mask_T = torch.from_numpy(is_counted_T).to(device)
            means.append(nll_T[mask_T].mean() if is_counted_T.any() else nll_T.sum() * 0)
        return means[0], means[1]

    def _sample_window(self, document: Any, tokens: int, rng: random.Random) -> Window:
        return sample_window(document, self._job.target, tokens, self._planter, self._options.facts, rng)

    def _distance_to_start(self) -> Tensor:
        """Return how far the log divisors are from the formula's: mean squares of changes and of their differences."""
        change_SP = self._tables.log_divisor_SP - self._start_SP
        return change_SP.square().mean() + change_SP.diff(dim=-1).square().mean()

    def _learning_rate(self, step: int) -> float:
        warm_up = min((step + 1) / _WARM_UP_STEPS, 1.0)
        return self._options.learning_rate * warm_up * 0.5 * (1 + math.cos(math.pi * step / self._options.steps))


@contextmanager
def _prepared_model(job: TuneJob, options: Gradient, layers: TableLayers) -> Iterator[LearnedTables]:
    """Within the block, the model takes its tables from the yielded parameters, and its weights are frozen."""
    model = job.model
    layer_rope = layers.rotary.layers()[layers.layer_type].layer_rope
    start = configs.compute_layer_frequencies(job.formula, layer_rope, None)
    tables = LearnedTables(layers, start, options.per_layer)
    checkpointed_layers = layers.layers if options.checkpointing else ()
    patches = PatchSet([LayerTablePatch(layers, tables), *checkpoint_patches(checkpointed_layers)])
    trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
    with ExitStack() as stack:
        stack.enter_context(evaluation_mode(model))
        # The softmax factor of the model's own scaling must not remain: `learned` has none.
        stack.enter_context(extended(model, "none"))
        patches.apply()
        stack.callback(patches.revert)
        for parameter in trainable:
            parameter.requires_grad_(False)
        try:
            yield tables
        finally:
            for parameter in trainable:
                parameter.requires_grad_(True)


def _not_a_number(what: str, step: int) -> RuntimeError:
    return RuntimeError(f"the {what} at step {step} is not a number; try another dtype or a lower learning rate")


def _describe(record: dict[str, Any]) -> str:
    shown = {"text_nll": "text", "answer_nll": "answers", "validation_loss": "validation"}
    return " ".join(f"{label} {record[name]:.3f}" for name, label in shown.items() if name in record)
