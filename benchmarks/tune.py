"""Do learned divisors beat the best formula at 32k, on books and code that were never seen?

    python -m benchmarks.tune --book BOOK --held-out-book BOOK [--steps 60] [--limit SECONDS]

On smollm2 (trained on 8,192 tokens) at 32,768 tokens. Trains on a book and on modules of Python's standard library,
and measures on another book and on other modules: perplexity by 8k bucket, and whether passkeys and needles at 16k and
32k are found (every token of the number is the model's most likely one). Compared with formulas, the unscaled model
and the native window. Trainings: one set per layer and one for all layers, two seeds each; short windows in place of
the whole length; other weights of the answers. The result is written after each row: results/tune_smollm2_32k.json.
"""

from __future__ import annotations

import argparse
import sysconfig
import tempfile
import time
import zlib
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

import ropewalk as rw
from benchmarks.common import read_training_log, save_result
from ropewalk import config as configs
from ropewalk.evaluate.native_window import native_window_nll
from ropewalk.evaluate.perplexity import compute_nll, perplexity_of
from ropewalk.evaluate.tasks import parse_task
from ropewalk.models.extend import extended
from ropewalk.models.load import load_tokenizer
from ropewalk.scaling import Scaling
from ropewalk.tuning.base import TuneJob
from ropewalk.tuning.gradient import Gradient

MODEL = "smollm2"
FORMULAS = [
    "yarn:factor=4",
    *(f"yarn:factor=4,attention_factor={factor}" for factor in (1.03, 1.05, 1.07, 1.1)),
    *("ntk-by-parts:factor=4", "mrrope-pro:factor=4", "ntk:factor=4"),
]


@dataclass
class Question:
    """A prompt and the tokens of its answer."""

    depth: float
    ids_T: torch.Tensor
    answer_tokens: int


def make_questions(task: str, length: int, count: int) -> list[Question]:
    tokenizer = load_tokenizer(MODEL)
    questions = []
    for sample in parse_task(task).make_samples(tokenizer, length, count, seed=0):
        answer = tokenizer(f" {sample.references[0]}", add_special_tokens=False)["input_ids"]
        ids_T = torch.tensor([*sample.prompt, *answer])
        questions.append(Question(sample.metadata["depth"], ids_T, len(answer)))
    return questions


class Measurement:
    """The held-out texts and questions, and the rows measured on them."""

    buckets = 4  # the first ends at the trained length

    def __init__(self, model: Any, texts: dict[str, NDArray[np.int64]], questions: dict[str, Any]) -> None:
        self.model = model
        self.texts = {name: torch.from_numpy(ids_T) for name, ids_T in texts.items()}
        self.questions = questions

    def row(self, scaling: Any, with_questions: bool = True) -> dict[str, Any]:
        row: dict[str, Any] = {}
        with extended(self.model, scaling):
            row["perplexity"] = {name: self._by_bucket(self._nll(ids_T)) for name, ids_T in self.texts.items()}
            if with_questions:
                row["found"] = {
                    name: [[q.depth, self._is_found(q)] for q in questions.result()]
                    for name, questions in self.questions.items()
                }
        return row

    def native_window(self) -> dict[str, Any]:
        window = len(next(iter(self.texts.values()))) // self.buckets
        nll = {name: native_window_nll(self.model, ids_T, window) for name, ids_T in self.texts.items()}
        return {"perplexity": {name: self._by_bucket(nll_T) for name, nll_T in nll.items()}}

    def _nll(self, ids_T: torch.Tensor) -> NDArray[np.float64]:
        return compute_nll(self.model, ids_T, chunk=len(ids_T))

    def _by_bucket(self, nll_T: NDArray[np.float64]) -> list[float]:
        return [round(perplexity_of(float(part.mean())), 4) for part in np.array_split(nll_T, self.buckets)]

    @torch.inference_mode()
    def _is_found(self, question: Question) -> int:
        ids_BT, tokens = question.ids_T[None].to(self.model.device), question.answer_tokens
        logits_TV = self.model(ids_BT[:, :-1], use_cache=False, logits_to_keep=tokens).logits[0]
        return int(bool((logits_TV.argmax(-1) == ids_BT[0, -tokens:]).all()))


def past_first_bucket(row: dict[str, Any]) -> float:
    """Return the perplexity past the original length, over all texts."""
    return float(np.exp(np.mean([np.log(buckets[1:]).mean() for buckets in row["perplexity"].values()])))


def summary(name: str, row: dict[str, Any]) -> str:
    shown = " | ".join(f"{text} " + " ".join(f"{p:.2f}" for p in ps) for text, ps in row["perplexity"].items())
    found = " ".join(f"{task} {sum(ok for _, ok in of)}/{len(of)}" for task, of in row.get("found", {}).items())
    return f"{name}: past L {past_first_bucket(row):.3f} | {shown} | {found}"


def standard_library(is_held_out: bool) -> str:
    """Return every fourth module of Python's standard library, or the others, in an order that depends on the names."""
    folder = Path(sysconfig.get_paths()["stdlib"])
    modules = [
        path for part in ("", "asyncio", "email", "unittest", "logging") for path in (folder / part).glob("*.py")
    ]
    modules.sort(key=lambda path: zlib.crc32(path.name.encode()))
    chosen = [path for index, path in enumerate(modules) if (index % 4 == 0) == is_held_out]
    return "\n\n".join(path.read_text(encoding="utf-8", errors="ignore") for path in chosen)


def plan_trainings(steps: int, window: int) -> Iterator[tuple[Gradient, int]]:
    """Yield trainings and their seeds, what matters most first."""
    per_layer = Gradient(per_layer=True, steps=steps, checkpointing=False)
    shared = replace(per_layer, per_layer=False)
    for seed in (0, 1):
        yield per_layer, seed
        yield shared, seed
    for options in (per_layer, shared):
        yield replace(options, window=window), 0
    for weight in (0.03, 0.0, 0.3):
        for options in (per_layer, shared):
            yield replace(options, answer_weight=weight, steps=steps * 2 // 3), 0


def train(options: Gradient, seed: int, job: TuneJob) -> tuple[Scaling, dict[str, Any]]:
    """Return what is learned, and a row with the time, the peak memory and the losses."""
    started = time.time()
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    with tempfile.TemporaryDirectory() as folder:
        learned = options.run(replace(job, folder=Path(folder), seed=seed), lambda share, detail: None)
        log = read_training_log(Path(folder))
    return learned, {
        "method": str(options),
        "seed": seed,
        "training_seconds": round(time.time() - started, 1),
        "peak_gib": round(torch.cuda.max_memory_allocated() / 2**30, 2) if torch.cuda.is_available() else None,
        "scaling": learned.to_dict(),
        "log": log,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--book", required=True)
    parser.add_argument("--held-out-book", required=True)
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument(
        "--target", type=int, default=32_768, help="four times the length that the model was trained on"
    )
    parser.add_argument("--window", type=int, default=3072)
    parser.add_argument("--samples", type=int, default=16)
    parser.add_argument("--limit", type=float, default=float("inf"), help="seconds after which no training begins")
    args = parser.parse_args()
    started = time.time()
    book, held_out_book = (Path(path).read_text(encoding="utf-8") for path in (args.book, args.held_out_book))
    with ProcessPoolExecutor(max_workers=4) as pool:
        questions = {
            f"{task.partition(':')[0]} {length}": pool.submit(make_questions, task, length, args.samples)
            for length in (args.target, args.target // 2)
            for task in ("passkey", f"needle:text={args.held_out_book}")
        }
        model, tokenizer = rw.load(MODEL)

        def encode(text: str) -> NDArray[np.int64]:
            return np.array(tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"])

        target = args.target
        rope = configs.read(model).main_layer.rope
        documents = [encode(book), encode(standard_library(is_held_out=False)[: 2 * len(book)])]
        held_out = {
            "book": encode(held_out_book[200_000 : 200_000 + 8 * target])[:target],
            "book 2": encode(held_out_book[1_500_000 : 1_500_000 + 8 * target])[:target],
            "code": (code := encode(standard_library(is_held_out=True)[: 16 * target]))[:target],
            "code 2": code[target : 2 * target],
        }
        measurement = Measurement(model, held_out, questions)
        document: dict[str, Any] = {
            "device": torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu",
            "dtype": str(model.dtype),
            "target": target,
            "tokens": {"trained on": [len(ids) - target for ids in documents], "held out": 4 * target},
            "formulas": {},
            "trainings": [],
        }

        def note(name: str, row: dict[str, Any]) -> None:
            print(f"{time.time() - started:.0f} s  {summary(name, row)}", flush=True)
            save_result("tune_smollm2_32k", document)

        formulas = document["formulas"]
        for formula in FORMULAS:
            formulas[formula] = measurement.row(formula, with_questions=False)
        best = min(FORMULAS, key=lambda formula: past_first_bucket(formulas[formula]))
        document["best_formula"] = best
        for formula in dict.fromkeys([best, FORMULAS[0]]):
            formulas[formula] = measurement.row(formula)
        formulas["none"] = measurement.row("none", with_questions=False)  # it finds nothing
        formulas["native window"] = measurement.native_window()
        for formula, row in formulas.items():
            note(formula, row)
        learn_from, validation = (
            tuple(ids[part] for ids in documents) for part in (slice(-target), slice(-target, None))
        )
        job = TuneJob(model, tokenizer, rope, target, learn_from, validation, folder=Path())
        seconds = 0.0
        for options, seed in plan_trainings(args.steps, args.window):
            if time.time() - started + seconds > args.limit:
                print("stopped at the limit")
                break
            begun = time.time()
            learned, row = train(options, seed, job)
            row |= measurement.row(learned)
            row["past_trained_length_to_best_formula"] = past_first_bucket(row) / past_first_bucket(formulas[best])
            document["trainings"].append(row)
            note(f"{options} seed {seed} ({row['training_seconds']} s, {row['peak_gib']} GiB)", row)
            seconds = time.time() - begun


if __name__ == "__main__":
    main()
