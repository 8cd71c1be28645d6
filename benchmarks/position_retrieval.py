"""At which depths does each method find a number in a long text: scalings, dynamic scalings, position methods?

    python -m benchmarks.position_retrieval [--tasks passkey needle] [--lengths 12000 16000 24000] [--methods LABEL ...]

Passkey, and needle in the built-in text, at eight depths. `found` says for each depth whether every token of the number
was the most likely one, after the model has read the text and the number; `nll` is its mean loss. A length past that
which the factor of a method is for is left out.

Up to the trained length, every position method reads as the plain model does, so that part of a prompt is read once for
all of them. Writes results/position_retrieval.json after every row, and continues
where it was interrupted; `python -m benchmarks.position_table_page` shows it.
"""

from __future__ import annotations

import argparse
import copy
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from transformers import DynamicCache

import ropewalk as rw
from benchmarks.position_variants import ResultRows, Variant, apply_variant, open_rows, select_variants
from ropewalk.compat.transformers import cache_for_call
from ropewalk.evaluate.tasks import parse_task
from ropewalk.positions import PositionMethod, parse

RESULT = "position_retrieval"
DEPTHS = 8
TASKS = ("passkey", "needle")


class Questions:
    """Prompts with their answers, read by one method after the other.

    Args:
        model: a model of transformers that no method is applied to.
        original_length: tokens that it was trained on, L; no prompt is shorter.
        prompt_BT, answer_BT: their tokens.
    """

    def __init__(self, model: Any, original_length: int, prompt_BT: Tensor, answer_BT: Tensor) -> None:
        self.model, self.original_length = model, original_length
        self.ids_BT = torch.cat([prompt_BT, answer_BT], dim=1).to(model.device)
        self.num_answer_tokens = answer_BT.shape[1]
        self._heads: dict[int, DynamicCache] = {}  # of the first L tokens of a part of the batch

    def ask(self, variant: Variant) -> dict[str, Any]:
        """Return for each prompt whether a method finds the number, and its mean loss."""
        rows = len(self.ids_BT) if self.model.device.type == "cuda" else 1  # of a batch
        with apply_variant(self.model, variant), torch.inference_mode():
            logits_BTV = torch.cat(
                [self._read(index, part_BT, variant) for index, part_BT in enumerate(self.ids_BT.split(rows))]
            )
        target_BT = self.ids_BT[:, -self.num_answer_tokens :]
        losses_BT = nn.functional.cross_entropy(logits_BTV.mT, target_BT, reduction="none")
        return {"found": (logits_BTV.argmax(-1) == target_BT).all(-1).tolist(), "nll": losses_BT.mean(-1).tolist()}

    def _read(self, index: int, part_BT: Tensor, variant: Variant) -> Tensor:
        """Return the logits for the answer tokens of a part of the batch."""
        options: dict[str, Any] = {"use_cache": False}
        if isinstance(parse(variant.spec), PositionMethod):
            if index not in self._heads:
                self._heads[index] = DynamicCache(config=self.model.config)
                options = cache_for_call(self.model, self._heads[index])
                self.model(part_BT[:, : self.original_length], logits_to_keep=1, **options)
            options = cache_for_call(self.model, copy.deepcopy(self._heads[index]))
            part_BT = part_BT[:, self.original_length :]
        logits_BTV = self.model(part_BT, logits_to_keep=self.num_answer_tokens + 1, **options).logits
        return logits_BTV[:, :-1].float()


def make_questions(model: Any, tokenizer: Any, original_length: int, task: str, length: int, seed: int) -> Questions:
    """Return the questions of a task at a length in tokens, with the room that the task leaves for an answer."""
    samples = parse_task(task).make_samples(tokenizer, length, DEPTHS, seed)
    answers = [tokenizer(f" {sample.references[0]}", add_special_tokens=False)["input_ids"] for sample in samples]
    prompt_BT = torch.tensor([sample.prompt for sample in samples])
    return Questions(model, original_length, prompt_BT, torch.tensor(answers))


def measure_retrieval(
    model: Any,
    tokenizer: Any,
    original_length: int,
    rows: ResultRows,
    variants: Sequence[Variant],
    tasks: Sequence[str],
    lengths: Sequence[int],
    seeds: Sequence[int],
) -> None:
    """Ask every variant every question that its factor is for."""
    for seed in seeds:
        for task in tasks:
            for length in lengths:
                questions = None
                for variant in variants:
                    key = {"method": variant.label, "task": task, "length": length, "seed": seed}
                    if length > variant.reach(original_length) or key in rows:
                        continue
                    questions = questions or make_questions(model, tokenizer, original_length, task, length, seed)
                    rows.add(key, lambda questions=questions, variant=variant: questions.ask(variant))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--tasks", nargs="+", choices=TASKS, default=TASKS)
    parser.add_argument("--methods", nargs="+", metavar="LABEL", help="as in the table; all by default")
    parser.add_argument("--lengths", type=int, nargs="+", default=[12_000, 16_000, 24_000])
    parser.add_argument("--seeds", type=int, default=1, help="numbers for each depth")
    parser.add_argument("--dtype")
    parser.add_argument("--device")
    args = parser.parse_args()
    variants = select_variants(args.methods)
    model, tokenizer = rw.load(args.model, dtype=args.dtype, device=args.device)
    measure_retrieval(
        model,
        tokenizer,
        model.config.max_position_embeddings,
        open_rows(RESULT, args.model, model),
        variants,
        args.tasks,
        args.lengths,
        range(args.seeds),
    )


if __name__ == "__main__":
    main()
