"""How near do searches without gradients come to what gradients learn?

    python -m benchmarks.tune_search --book BOOK --held-out-book BOOK [--device cuda] [--minutes 0.6]

On smollm2 (trained on 8,192 tokens) at 32,768 tokens. `search` and `evolution` read a book; the proof reads another
book and Python's help pages. The searches read windows of the text on a CPU, and all of it on a GPU. The result is
written after each method: results/tune_search_smollm2_32k.json, which benchmarks.tune has the learned ones beside.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch

import ropewalk as rw
from benchmarks.common import save_result, write_held_out
from ropewalk import config as configs
from ropewalk.tuning.base import TuneJob, Tuner
from ropewalk.tuning.evolution import Evolution
from ropewalk.tuning.proof import ProofRun
from ropewalk.tuning.search import Search


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--book", required=True)
    parser.add_argument("--held-out-book", required=True)
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--device")
    parser.add_argument("--target", type=int, default=32_768, help="tokens")
    parser.add_argument("--window", type=int, help="tokens")
    parser.add_argument("--texts", type=int, default=2, help="that each candidate reads")
    parser.add_argument("--facts", type=int, default=12, help="in each text")
    parser.add_argument("--minutes", type=float, default=0.6, help="for each search")
    parser.add_argument("--samples", type=int, default=4, help="of each retrieval task and length")
    args = parser.parse_args()
    model, tokenizer = rw.load(args.model, device=args.device)
    is_cuda = model.device.type == "cuda"
    result: dict[str, Any] = {
        "device": torch.cuda.get_device_name() if is_cuda else "cpu",
        "dtype": str(model.dtype),
        "target": args.target,
        "methods": [],
    }
    budget: dict[str, Any] = {"minutes": args.minutes, "trials": 10_000}
    budget |= {name: getattr(args, name) for name in ("texts", "facts", "window")}
    with tempfile.TemporaryDirectory() as name:
        job = make_job(model, tokenizer, Path(args.book), args.target, Path(name))
        held_out = job.folder / "held_out.txt"
        write_held_out(Path(args.held_out_book), args.target, held_out)
        for tuner in (Search(**budget), Evolution(**budget)):
            row = measure(tuner, job, [str(held_out), "pydoc"], args.samples)
            result["methods"].append(row)
            save_result("tune_search_smollm2_32k", result)
            print(f"{row['method']}: {row['seconds']} s, {row['search']}\n{row['sentence']}", flush=True)


def make_job(model: Any, tokenizer: Any, book: Path, target: int, folder: Path) -> TuneJob:
    ids = tokenizer(book.read_text(encoding="utf-8"), add_special_tokens=False, verbose=False)["input_ids"]
    return TuneJob(model, tokenizer, configs.read(model).main_layer.rope, target, (np.array(ids),), (), folder)


def measure(tuner: Tuner, job: TuneJob, texts: Sequence[str], samples: int) -> dict[str, Any]:
    """Return what a search found, how long it took, and how it compares with the formulas."""
    details: list[str] = []
    started = time.perf_counter()
    scaling = tuner.run(job, lambda share, detail: details.append(detail))
    seconds = time.perf_counter() - started
    source, out = (job.model, job.tokenizer), job.folder / "proof"
    proof = ProofRun(source, scaling, job.target, texts, out, samples=samples).run()
    perplexities = {
        Path(text).name: {"tuned" if label == proof.tuned else label: values for label, values in rows.items()}
        for text, rows in proof.perplexities.items()
    }
    retrieval = [
        {**asdict(each), "scaling": "tuned" if each.scaling == proof.tuned else each.scaling}
        for each in proof.retrieval
    ]
    return {
        "method": str(tuner),
        "seconds": round(seconds, 1),
        "search": details[-1],
        "scaling": scaling.to_dict(),
        "sentence": proof.sentence,
        "best_formula": proof.best_formula,
        "bucket_ends": proof.ends,
        "perplexities": perplexities,
        "retrieval": retrieval,
    }


if __name__ == "__main__":
    main()
