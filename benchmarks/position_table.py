"""Which method reads past the trained length best, and what does it cost: scalings, dynamic scalings, position methods?

    python -m benchmarks.position_table --texts pydoc book.txt [--parts perplexity cost retrieval]
    python -m benchmarks.position_table_page > docs/position-table.md

perplexity: of each text over the trained length L, from L to 2 L, and from 2 L to 4 L. Static scalings and position
    methods read the text in one call or a few. Dynamic scalings read it through the KV cache, 512 tokens at a time. The
    row "native window" is the model as it is, which reads its last L tokens again for every 1,024.
cost: time to read 2 L tokens, time per token after that, and the most memory in use beside the weights (CUDA only).
retrieval: passkey, and needle in the built-in text, at eight depths. The model reads text and answer in one call;
    `found` says for each depth whether every token of the number was the most likely one. Lengths past those that a
    method's factor is for are left out.

Writes results/position_table.json after every row, and continues where it was interrupted.
"""

from __future__ import annotations

import argparse
import itertools
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import DynamicCache

import ropewalk as rw
from benchmarks.common import load_result, save_result
from benchmarks.speed.environment import describe_device
from ropewalk.evaluate.native_window import native_window_nll
from ropewalk.evaluate.perplexity import compute_nll
from ropewalk.evaluate.tasks import parse_task
from ropewalk.evaluate.texts import read_text
from ropewalk.models.extend import extended
from ropewalk.positions import PositionMethod, parse
from ropewalk.positions.base import resolve_window
from ropewalk.scaling.policies import parse_policy

RESULT = "position_table"
NATIVE_WINDOW = "native window"
NATIVE_STRIDE = 1024  # tokens that the native window moves on by
CHUNK = 512  # tokens per call under a dynamic scaling
DEPTHS = 8
DECODED_TOKENS = 16
TASKS = ("passkey", "needle")
PARTS = ("perplexity", "cost", "retrieval")


@dataclass(frozen=True)
class Variant:
    """A method, with the policy of a dynamic scaling.

    Attributes:
        spec: of the method.
        policy: spec of the policy; None for a method that follows none.
        has_cost: whether its cost is measured; all static scalings cost as much as YaRN.
    """

    spec: str
    policy: str | None = None
    has_cost: bool = False

    @property
    def label(self) -> str:
        return self.spec if self.policy is None else f"{self.spec}, {self.policy}"

    def reach(self, original_length: int) -> float:
        """Return the longest text, in tokens, that the options of the method are for."""
        method: Any = parse(self.spec)
        factor = getattr(method, "factor", None) or getattr(method, "group", None)
        if factor is None:
            return math.inf
        if not isinstance(method, PositionMethod):
            return factor * original_length
        window = resolve_window(method.window, original_length)
        return factor * (original_length - window) + window


VARIANTS = (  # the most interesting ones first, in case that a run is cut
    Variant("none", has_cost=True),
    Variant("yarn:factor=2", has_cost=True),
    Variant("yarn:factor=4"),
    Variant("dynamic-yarn", "stepped", has_cost=True),
    Variant("dynamic-yarn", "continuous", has_cost=True),
    Variant("leaky-rerope", has_cost=True),
    Variant("self-extend", has_cost=True),
    Variant("near-exact", has_cost=True),
    Variant("dual-chunk", has_cost=True),
    Variant("jet-long", has_cost=True),
    Variant("rerope", has_cost=True),
    Variant("leaky-rerope:factor=2"),
    Variant("leaky-rerope:factor=3"),
    Variant("leaky-rerope:factor=4"),
    Variant("leaky-rerope:factor=8"),
    Variant("leaky-rerope:factor=4,window=2048"),
    Variant("leaky-rerope:factor=8,window=1024"),
    Variant("leaky-rerope:logit_scaling=log-n"),
    Variant("leaky-rerope:logit_scaling=yarn"),
    Variant("self-extend:group=4"),
    Variant("self-extend:group=8"),
    Variant("self-extend:group=8,window=1024"),
    Variant("near-exact:scaling=yarn"),
    Variant("mrrope-pro:factor=2"),
    Variant("mrrope-pro:factor=4"),
    Variant("mrrope-uni:factor=2"),
    Variant("mrrope-uni:factor=4"),
    Variant("yarn:critical=17,factor=4"),
    Variant("ntk-by-parts:factor=2"),
    Variant("ntk-by-parts:factor=4"),
    Variant("ntk:factor=2"),
    Variant("ntk:factor=4"),
    Variant("linear:factor=2"),
    Variant("linear:factor=4"),
    Variant("llama3:factor=4"),
    Variant("critical-base:factor=4"),
    Variant("cope"),
    Variant("cope:factor=2"),
    Variant("dynamic-ntk", "continuous"),
    Variant("dynamic-ntk-by-parts", "continuous"),
)


class TableRun:
    """The measurements of one model; rows are written as they are made.

    Args:
        model, tokenizer: a model of transformers that no method is applied to.
        original_length: tokens that it was trained on, L.
        rows: those of an earlier run, which are not measured again.
        save: called after every new row with all rows.
    """

    def __init__(
        self,
        model: Any,
        tokenizer: Any,
        original_length: int,
        rows: list[dict[str, Any]],
        save: Callable[[list[dict[str, Any]]], None],
    ) -> None:
        self.model, self.tokenizer, self.original_length = model, tokenizer, original_length
        self.rows, self._save = rows, save
        self.dtype = str(model.dtype).removeprefix("torch.")
        self.device = describe_device(model.device)

    def measure_perplexity(self, variants: Sequence[Variant], texts: Sequence[str]) -> None:
        length = 4 * self.original_length
        for text in texts:
            ids_T = torch.tensor(self.tokenizer(read_text(text).content, verbose=False)["input_ids"][:length])
            if len(ids_T) < length:
                raise SystemExit(f"--texts: got {text} with {len(ids_T):,} tokens; expected at least {length:,}")
            self._add(
                {"part": "perplexity", "method": NATIVE_WINDOW, "text": Path(text).stem},
                lambda ids_T=ids_T: self._perplexities(self._read_native_window(ids_T)),
            )
            for variant in variants:
                self._add(
                    {"part": "perplexity", "method": variant.label, "text": Path(text).stem},
                    lambda ids_T=ids_T, variant=variant: self._perplexities(self._read(ids_T, variant)),
                )

    def measure_cost(self, variants: Sequence[Variant]) -> None:
        context = 2 * self.original_length
        for variant in variants:
            if variant.has_cost:
                key = {"part": "cost", "method": variant.label, "context": context}
                self._add(key, lambda variant=variant: self._cost(variant, context))

    def measure_retrieval(self, variants: Sequence[Variant], lengths: Sequence[int], seeds: Sequence[int]) -> None:
        @cache
        def make_prompts(task: str, length: int, seed: int) -> tuple[Tensor, Tensor]:
            samples = parse_task(task).make_samples(self.tokenizer, length, DEPTHS, seed)
            answers = [
                self.tokenizer(f" {sample.references[0]}", add_special_tokens=False)["input_ids"] for sample in samples
            ]
            return torch.tensor([sample.prompt for sample in samples]), torch.tensor(answers)

        for seed in seeds:
            for variant in variants:
                for task in TASKS:
                    for length in lengths:
                        if length > variant.reach(self.original_length):
                            continue
                        key = {"part": "retrieval", "method": variant.label, "task": task, "length": length}
                        self._add(
                            {**key, "seed": seed},
                            lambda of=(task, length, seed), variant=variant: self._find(variant, *make_prompts(*of)),
                        )

    def _add(self, key: dict[str, Any], measure: Callable[[], dict[str, Any]]) -> None:
        key = {**key, "dtype": self.dtype}
        if any(key.items() <= row.items() for row in self.rows):
            return
        started = time.perf_counter()
        measured = measure()
        row = {**key, **measured, "device": self.device, "seconds": round(time.perf_counter() - started, 2)}
        self.rows.append(row)
        self._save(self.rows)
        values = {name: round(x, 3) if isinstance(x, float) else x for name, x in measured.items()}
        print(" ".join(str(x) for x in (*key.values(), values, f"{row['seconds']} s")), flush=True)

    def _extended(self, variant: Variant) -> Any:
        policy = {} if variant.policy is None else {"policy": parse_policy(variant.policy)}
        return extended(self.model, parse(variant.spec), **policy)

    def _read(self, ids_T: Tensor, variant: Variant) -> Tensor:
        """Return the loss of every token but the first, in nats."""
        with self._extended(variant):
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

    def _find(self, variant: Variant, prompt_BT: Tensor, answer_BT: Tensor) -> dict[str, Any]:
        ids_BT, tokens = torch.cat([prompt_BT, answer_BT], dim=1).to(self.model.device), answer_BT.shape[1]
        rows = len(ids_BT) if self.model.device.type == "cuda" else 1  # of a batch
        with self._extended(variant), torch.inference_mode():
            logits_BTV = torch.cat(
                [
                    self.model(part_BT, use_cache=False, logits_to_keep=tokens + 1).logits[:, :-1].float()
                    for part_BT in ids_BT.split(rows)
                ]
            )
        target_BT = ids_BT[:, -tokens:]
        losses_BT = nn.functional.cross_entropy(logits_BTV.mT, target_BT, reduction="none")
        return {"found": (logits_BTV.argmax(-1) == target_BT).all(-1).tolist(), "nll": losses_BT.mean(-1).tolist()}

    def _cost(self, variant: Variant, context: int) -> dict[str, Any]:
        on_cuda = self.model.device.type == "cuda"
        ids_BT = torch.randint(0, 1000, (1, context), generator=torch.Generator().manual_seed(0)).to(self.model.device)

        def synchronized_time() -> float:
            if on_cuda:
                torch.cuda.synchronize()
            return time.perf_counter()

        before = torch.cuda.memory_allocated() if on_cuda else 0
        with self._extended(variant), torch.inference_mode():
            for _ in range(2):  # the first one loads and compiles kernels
                if on_cuda:
                    torch.cuda.reset_peak_memory_stats()
                cache = DynamicCache(config=self.model.config)
                started = synchronized_time()
                self.model(ids_BT, past_key_values=cache, logits_to_keep=1)
                prefill = synchronized_time() - started
                token_BT = ids_BT[:, :1]
                started = synchronized_time()
                for _ in range(DECODED_TOKENS):
                    token_BT = self.model(token_BT, past_key_values=cache).logits[:, -1:].argmax(-1)
                per_token = (synchronized_time() - started) / DECODED_TOKENS
        peak = torch.cuda.max_memory_allocated() - before if on_cuda else None
        return {"prefill_seconds": prefill, "seconds_per_token": per_token, "peak_bytes": peak}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--texts", nargs="+", default=["pydoc"], help="files, or pydoc, the built-in text")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS)
    parser.add_argument("--methods", nargs="+", metavar="LABEL", help="as in the table; all by default")
    parser.add_argument("--lengths", type=int, nargs="+", default=[12_000, 16_000, 24_000], help="for retrieval")
    parser.add_argument("--seeds", type=int, default=1, help="numbers for each depth, for retrieval")
    parser.add_argument("--dtype")
    parser.add_argument("--device")
    args = parser.parse_args()
    unknown = set(args.methods or ()) - {variant.label for variant in VARIANTS}
    if unknown:
        parser.error(f"--methods: got {', '.join(unknown)}; expected {', '.join(each.label for each in VARIANTS)}")
    document = load_result(RESULT)
    if document.get("model", args.model) != args.model:
        parser.error(f"--model: got {args.model}; expected {document['model']}, as in results/{RESULT}.json")
    model, tokenizer = rw.load(args.model, dtype=args.dtype, device=args.device)
    original_length = model.config.max_position_embeddings
    variants = [each for each in VARIANTS if not args.methods or each.label in args.methods]

    def save(rows: list[dict[str, Any]]) -> None:
        save_result(RESULT, {"model": args.model, "original_length": original_length, "rows": rows})

    run = TableRun(model, tokenizer, original_length, document.get("rows", []), save)
    for row in run.rows:  # numbers of several machines in one table would be compared
        if (row["device"], row["dtype"]) != (run.device, run.dtype):
            parser.error(
                f"--device: got {run.device} in {run.dtype}; expected {row['device']} in {row['dtype']}, as in "
                f"results/{RESULT}.json; move that file away to begin anew"
            )
    if "perplexity" in args.parts:
        run.measure_perplexity(variants, args.texts)
    if "cost" in args.parts:
        run.measure_cost(variants)
    if "retrieval" in args.parts:
        run.measure_retrieval(variants, args.lengths, range(args.seeds))


if __name__ == "__main__":
    main()
