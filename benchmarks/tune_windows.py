"""What does `ropewalk tune` learn on a CPU, from short windows that stand for long texts?

    python -m benchmarks.tune_windows --book BOOK --held-out BOOK

On smollm2 (trained on 8,192 tokens), for 32,768 tokens: trains on windows of 3,072 tokens of a book, and measures the
perplexity of another book at full length by bucket of 8,192 tokens, beside formulas. One training reads plain windows,
in which each key counts once and each token of the text counts in the loss. The last step counts: no validation chooses
one. What is learned and measured is kept in the folder of --out, where an interrupted run continues, and written to
results/tune_windows_TARGET.json after each row.
"""

from __future__ import annotations

import argparse
import hashlib
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

import numpy as np
import torch
from numpy.typing import NDArray

from benchmarks.common import read_training_log, save_result, write_held_out
from ropewalk.evaluate.perplexity import compute_nll, perplexity_of
from ropewalk.files import replace_file_atomically
from ropewalk.models.extend import extended
from ropewalk.scaling.learned import Learned
from ropewalk.scaling.yarn import yarn_mscale
from ropewalk.tuning.base import TuneJob
from ropewalk.tuning.gradient import Gradient
from ropewalk.tuning.run import TuneRun
from ropewalk.tuning.windows import Window

MODEL = "smollm2"
BUCKET = 8192  # tokens; as many as the model was trained on
SHARED = Gradient(steps=20, checkpointing=False)
PER_LAYER = replace(SHARED, steps=32, per_layer=True)


class Training(NamedTuple):
    """What to train: the options, the seed, and whether it reads plain windows."""

    options: Gradient
    seed: int = 0
    is_plain: bool = False


TRAININGS = {
    "shared": Training(SHARED),
    "per-layer": Training(PER_LAYER),
    "shared, plain windows": Training(SHARED, is_plain=True),
    "shared, seed 1": Training(SHARED, seed=1),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--book", required=True)
    parser.add_argument("--held-out", required=True)
    parser.add_argument("--target", type=int, default=32_768, help="tokens")
    parser.add_argument("--out", type=Path, default=Path("runs/tune_windows"))
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    held_out, factor = args.out / "held_out.txt", args.target / BUCKET
    write_held_out(Path(args.held_out), args.target, held_out)
    run = TuneRun(MODEL, args.target, args.book, args.out / "texts", device="cpu")
    ids_T = torch.tensor(run.job.tokenizer(held_out.read_text("utf-8"), verbose=False)["input_ids"][: args.target])
    document: dict[str, Any] = {
        "model": MODEL,
        "device": "cpu",
        "dtype": str(run.job.model.dtype),
        "target": args.target,
        "trained_on": Path(args.book).name,
        "held_out": Path(args.held_out).name,
        "rows": {},
    }

    def measure(name: str, measured: Any, **details: Any) -> None:
        nll_T = stored_nll(args.out, run.job.model, measured, ids_T)
        parts = [part.mean() for part in np.split(nll_T, range(BUCKET - 1, len(nll_T), BUCKET))]
        document["rows"][name] = {
            "perplexity": [round(perplexity_of(float(part)), 3) for part in parts],
            "past_trained_length": round(perplexity_of(float(nll_T[BUCKET - 1 :].mean())), 3),
            **details,
        }
        print(name, document["rows"][name]["perplexity"], flush=True)
        save_result(f"tune_windows_{args.target}", document)

    yarn = f"yarn:factor={factor:g}"
    # At 32,768 tokens, this attention factor is the best of four: results/tune_smollm2_32k.json.
    for spec in (yarn, f"{yarn},attention_factor={yarn_mscale(factor, 0.7):.2g}"):
        measure(spec, spec)
    for name, training in TRAININGS.items():
        job = replace(run.job, validation=(), folder=args.out / name, seed=training.seed)
        learned = train(training, job)
        log = read_training_log(job.folder)
        seconds = round(sum(record.get("seconds", 0.0) for record in log), 1)
        measure(name, learned, method=str(training.options), seconds=seconds, scaling=learned.to_dict(), log=log)


def train(training: Training, job: TuneJob) -> Learned:
    job.folder.mkdir(exist_ok=True)
    with plain_windows() if training.is_plain else nullcontext():
        return training.options.run(job, lambda share, detail: print(f"{share:4.0%} {detail}", flush=True))


@contextmanager
def plain_windows() -> Iterator[None]:
    """Within the block, each key of a window counts once, and each token of the text counts in the loss."""
    with (
        mock.patch.object(Window, "layer_biases", return_value={}),
        mock.patch.object(Window, "find_counted_tokens", lambda window: window.is_text_T),
    ):
        yield


def stored_nll(folder: Path, model: Any, scaling: Any, ids_T: torch.Tensor) -> NDArray[np.float64]:
    """Return the loss on each token after the first under a scaling, from a file if it was measured before."""
    digest = hashlib.sha256(ids_T.numpy().tobytes() + repr(scaling).encode()).hexdigest()[:16]
    path = folder / f"nll-{digest}.npy"
    if not path.exists():
        with extended(model, scaling):
            nll_T = compute_nll(model, ids_T, chunk=len(ids_T))
        with replace_file_atomically(path, "wb") as file:
            np.save(file, nll_T)
    stored: NDArray[np.float64] = np.load(path)
    return stored


if __name__ == "__main__":
    main()
