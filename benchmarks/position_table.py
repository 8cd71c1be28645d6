"""Which method reads past the trained length best, and what does it cost: scalings, dynamic scalings, position methods?

    python -m benchmarks.position_table --texts pydoc book.txt [--parts perplexity cost]
    python -m benchmarks.position_table_page > docs/position-table.md

perplexity: of each text over the trained length L, from L to 2 L, and from 2 L to 4 L. Static scalings and position
    methods read the text in one call or a few. Dynamic scalings read it through the KV cache, 512 tokens at a time. The
    row "native window" is the model as it is, which reads its last L tokens again for every 1,024.
cost: time to read 2 L tokens, time per token after that, and the most memory in use beside the weights (CUDA only).

Writes results/position_table.json after every row, and continues where it was interrupted.
`python -m benchmarks.position_retrieval` measures retrieval.
"""

from __future__ import annotations

import argparse
import itertools
import math
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache

import ropewalk as rw
from benchmarks.position_variants import ResultRows, Variant, apply_variant, open_rows, select_variants
from ropewalk.compat.transformers import cache_for_call
from ropewalk.evaluate.native_window import native_window_nll
from ropewalk.evaluate.perplexity import compute_nll
from ropewalk.evaluate.texts import read_text

RESULT = "position_table"
NATIVE_WINDOW = "native window"
NATIVE_STRIDE = 1024  # tokens that the native window moves on by
CHUNK = 512  # tokens per call under a dynamic scaling
DECODED_TOKENS = 16
PARTS = ("perplexity", "cost")


class TableRun:
    """The measurements of one model.

    Args:
        model, tokenizer: a model of transformers that no method is applied to.
        original_length: tokens that it was trained on, L.
        rows: takes the results.
    """

    def __init__(self, model: Any, tokenizer: Any, original_length: int, rows: ResultRows) -> None:
        self.model, self.tokenizer, self.original_length, self.rows = model, tokenizer, original_length, rows

    def measure_perplexity(self, variants: Sequence[Variant], texts: Sequence[str]) -> None:
        length = 4 * self.original_length
        for text in texts:
            ids_T = torch.tensor(self.tokenizer(read_text(text).content, verbose=False)["input_ids"][:length])
            if len(ids_T) < length:
                raise SystemExit(f"--texts: got {text} with {len(ids_T):,} tokens; expected at least {length:,}")
            self.rows.add(
                {"part": "perplexity", "method": NATIVE_WINDOW, "text": Path(text).stem},
                lambda ids_T=ids_T: self._perplexities(self._read_native_window(ids_T)),
            )
            for variant in variants:
                self.rows.add(
                    {"part": "perplexity", "method": variant.label, "text": Path(text).stem},
                    lambda ids_T=ids_T, variant=variant: self._perplexities(self._read(ids_T, variant)),
                )

    def measure_cost(self, variants: Sequence[Variant]) -> None:
        context = 2 * self.original_length
        for variant in variants:
            if variant.has_cost:
                key = {"part": "cost", "method": variant.label, "context": context}
                self.rows.add(key, lambda variant=variant: self._cost(variant, context))

    def _read(self, ids_T: Tensor, variant: Variant) -> Tensor:
        """Return the loss of every token but the first, in nats."""
        with apply_variant(self.model, variant):
            chunk = None if variant.policy is None else CHUNK
            return torch.from_numpy(compute_nll(self.model, ids_T, chunk=chunk))

    def _read_native_window(self, ids_T: Tensor) -> Tensor:
        return torch.from_numpy(
            native_window_nll(
                self.model, ids_T, self.original_length, stride=min(NATIVE_STRIDE, self.original_length // 2)
            )
        )

    def _perplexities(self, losses_T: Tensor) -> dict[str, Any]:
        bounds = [0, self.original_length, 2 * self.original_length, 4 * self.original_length]
        parts = [losses_T[max(0, start - 1) : end - 1] for start, end in itertools.pairwise(bounds)]
        return {"perplexity": [math.exp(min(float(part.mean()), 700.0)) for part in parts]}

    def _cost(self, variant: Variant, context: int) -> dict[str, Any]:
        on_cuda = self.model.device.type == "cuda"
        ids_BT = torch.randint(0, 1000, (1, context), generator=torch.Generator().manual_seed(0)).to(self.model.device)

        def synchronized_time() -> float:
            if on_cuda:
                torch.cuda.synchronize()
            return time.perf_counter()

        before = torch.cuda.memory_allocated() if on_cuda else 0
        with apply_variant(self.model, variant), torch.inference_mode():
            for _ in range(2):  # the first one loads and compiles kernels
                if on_cuda:
                    torch.cuda.reset_peak_memory_stats()
                cache = DynamicCache(config=self.model.config)
                started = synchronized_time()
                self.model(ids_BT, **cache_for_call(self.model, cache), logits_to_keep=1)
                prefill = synchronized_time() - started
                token_BT = ids_BT[:, :1]
                started = synchronized_time()
                for _ in range(DECODED_TOKENS):
                    token_BT = self.model(token_BT, **cache_for_call(self.model, cache)).logits[:, -1:].argmax(-1)
                per_token = (synchronized_time() - started) / DECODED_TOKENS
        peak = torch.cuda.max_memory_allocated() - before if on_cuda else None
        return {"prefill_seconds": prefill, "seconds_per_token": per_token, "peak_bytes": peak}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--texts", nargs="+", default=["pydoc"], help="files, or pydoc, the built-in text")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS)
    parser.add_argument("--methods", nargs="+", metavar="LABEL", help="as in the table; all by default")
    parser.add_argument("--dtype")
    parser.add_argument("--device")
    args = parser.parse_args()
    variants = select_variants(args.methods)
    model, tokenizer = rw.load(args.model, dtype=args.dtype, device=args.device)
    run = TableRun(model, tokenizer, model.config.max_position_embeddings, open_rows(RESULT, args.model, model))
    if "perplexity" in args.parts:
        run.measure_perplexity(variants, args.texts)
    if "cost" in args.parts:
        run.measure_cost(variants)


if __name__ == "__main__":
    main()
