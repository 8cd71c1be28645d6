"""What does `ropewalk tune` reach on a CPU, where short windows with jumps in their positions stand for long texts?

    python -m benchmarks.tune_windows --book BOOK --held-out BOOK [--seeds 0 1]

On smollm2 (trained on 8,192 tokens) at 16,384 tokens: one set for all layers, then a set for each layer. Trains on a
book, and compares with the formulas on another one: perplexity by bucket, passkeys and needles. All numbers are kept in
the folder of --out, where an interrupted run continues. Writes results/tune_smollm2_16k.json as soon as perplexities
are known, and again with the answers.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from benchmarks.common import read_training_log, save_result, write_held_out
from ropewalk.scaling import Scaling
from ropewalk.tuning.proof import ProofRun
from ropewalk.tuning.run import TuneRun

MODEL = "smollm2"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--book", required=True)
    parser.add_argument("--held-out", required=True)
    parser.add_argument("--target", type=int, default=16_384, help="tokens")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--samples", type=int, default=2, help="of each retrieval task")
    parser.add_argument("--method", default="gradient:checkpointing=false")
    parser.add_argument("--out", type=Path, default=Path("runs/tune_windows"))
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    held_out = args.out / "held_out.txt"
    write_held_out(Path(args.held_out), args.target, held_out)
    document: dict[str, Any] = {
        "model": MODEL,
        "device": "cpu",
        "target": args.target,
        "trained_on": Path(args.book).name,
        "held_out": Path(args.held_out).name,
        "trainings": [],
    }
    for per_layer in (False, True):
        for seed in args.seeds:
            folder = args.out / f"{'per-layer' if per_layer else 'shared'}-{seed}"
            options = {"method": args.method, "per_layer": per_layer, "seed": seed, "device": "cpu"}
            run = TuneRun(MODEL, args.target, args.book, folder, **options)
            scaling = run.tune(lambda share, detail: print(f"{share:4.0%} {detail}", flush=True))
            row = describe(run, scaling)
            document["trainings"].append(row)
            # The formulas and the unscaled model are measured once, in the folder that all proofs share.
            source, out = (run.job.model, run.job.tokenizer), args.out / "proof"
            proof = ProofRun(source, scaling, args.target, [str(held_out)], out, samples=args.samples)
            row["perplexities"] = proof.measure_perplexities()
            save_result("tune_smollm2_16k", document)
            row["proof"] = proof.run().to_dict()
            save_result("tune_smollm2_16k", document)
            print(f"{run.method} seed {seed}: {row['proof']['sentence']}", flush=True)


def describe(run: TuneRun, scaling: Scaling) -> dict[str, Any]:
    """Return the method, its losses and what it learned."""
    log = read_training_log(run.job.folder)
    return {
        "method": str(run.method),
        "seed": run.job.seed,
        "training_seconds": round(sum(record.get("seconds", 0.0) for record in log), 1),
        "scaling": scaling.to_dict(),
        "log": log,
    }


if __name__ == "__main__":
    main()
