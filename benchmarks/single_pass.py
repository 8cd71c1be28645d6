"""What does a perplexity curve cost: one pass for all lengths, against one full pass for each?

    python benchmarks/single_pass.py [--lengths 16] [--longest 16384]

In one process, in turn, on smollm2 and the built-in text:
  - ropewalk: `perplexity_curve`, one pass, logits in blocks;
  - plain: one forward pass of the model at the longest length, its logits dropped (no perplexity at all);
  - peer: the way of the YaRN paper's repository, for each length a full pass whose logits exist at once.
Peak memory is the process's own above the loaded model, read by a thread while each runs.
"""

from __future__ import annotations

import argparse
import gc
import threading
import time
from collections.abc import Callable
from typing import Any

import torch
from common import keep

import ropewalk as rw
from ropewalk.evaluate.texts import read_text


class PeakMemory:
    """Resident bytes above those at the start, at their highest."""

    def __enter__(self) -> PeakMemory:
        gc.collect()
        self.start, self.peak, self.running = resident(), 0, True
        self.thread = threading.Thread(target=self.watch)
        self.thread.start()
        return self

    def watch(self) -> None:
        while self.running:
            self.peak = max(self.peak, resident() - self.start)
            time.sleep(0.005)

    def __exit__(self, *_: object) -> None:
        self.running = False
        self.thread.join()


def resident() -> int:
    return int(open("/proc/self/statm").read().split()[1]) * 4096


def measured(work: Callable[[], Any]) -> tuple[Any, float, float]:
    with PeakMemory() as memory:
        started = time.perf_counter()
        result = work()
        seconds = time.perf_counter() - started
    return result, seconds, memory.peak / 2**30


def peer(model: Any, ids_T: torch.Tensor, lengths: list[int]) -> dict[int, float]:
    found = {}
    for length in lengths:
        with torch.inference_mode():
            ids_BT = ids_T[None, :length]
            found[length] = float(torch.exp(model(ids_BT, labels=ids_BT, use_cache=False).loss))
    return found


def plain(model: Any, ids_T: torch.Tensor) -> None:
    with torch.inference_mode():
        model(ids_T[None], use_cache=False)


def in_float32(tokens: list[int]) -> dict[str, Any]:
    """Both ways without bfloat16's rounding, which alone moves a perplexity by 1e-3: at lengths that a CPU can afford."""
    model, _ = rw.load("smollm2", dtype="float32")
    ids_T, lengths = torch.tensor(tokens[:4096]), [1024, 2048, 3072, 4096]
    theirs = peer(model, ids_T, lengths)
    rows = [
        {"length": row["length"], "ours": row["ppl"], "peer": theirs[row["length"]]}
        for row in rw.perplexity_curve(model, ids_T, lengths)
    ]
    return {"rows": rows, "apart": max(abs(row["ours"] / row["peer"] - 1) for row in rows)}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--lengths", type=int, default=16)
    parser.add_argument("--longest", type=int, default=16384)
    parser.add_argument("--pairs", type=int, default=3)
    args = parser.parse_args()
    model, tokenizer = rw.load("smollm2")
    tokens = tokenizer(read_text("pydoc").content, verbose=False)["input_ids"]
    ids_T = torch.tensor(tokens[: args.longest])
    lengths = [args.longest * (i + 1) // args.lengths for i in range(args.lengths)]
    rw.perplexity_curve(model, ids_T, [1024])  # warm up
    plain(model, ids_T[:1024])
    pairs = []
    for _ in range(args.pairs):
        _, plain_seconds, plain_memory = measured(lambda: plain(model, ids_T))
        rows, seconds, memory = measured(lambda: rw.perplexity_curve(model, ids_T, lengths))
        pairs.append({"plain_s": plain_seconds, "plain_gib": plain_memory, "ours_s": seconds, "ours_gib": memory})
        print(
            f"plain pass {plain_seconds:6.1f} s {plain_memory:5.2f} GiB   "
            f"ropewalk {seconds:6.1f} s {memory:5.2f} GiB   speed against plain {plain_seconds / seconds:.2f}"
        )
    exact = in_float32(tokens)
    theirs, peer_seconds, peer_memory = measured(lambda: peer(model, ids_T, lengths))
    median = sorted(pair["ours_s"] for pair in pairs)[len(pairs) // 2]
    apart = max(abs(row["ppl"] / theirs[row["length"]] - 1) for row in rows)
    times = peer_seconds / median
    print(f"peer, {args.lengths} full passes: {peer_seconds:.1f} s, {peer_memory:.2f} GiB: {times:.1f} times ours")
    print(f"perplexities apart by at most {apart:.1e}, relative, in bfloat16; {exact['apart']:.1e} in float32")
    keep(
        "single_pass",
        {
            "lengths": lengths,
            "pairs": pairs,
            "peer": {"seconds": peer_seconds, "gib": peer_memory},
            "speed_against_plain": sorted(p["plain_s"] / p["ours_s"] for p in pairs)[len(pairs) // 2],
            "times_faster_than_peer": times,
            "relative_difference": {"bfloat16": apart, "float32": exact["apart"]},
            "float32": exact["rows"],
            "ppl": [{"length": row["length"], "ours": row["ppl"], "peer": theirs[row["length"]]} for row in rows],
        },
    )


if __name__ == "__main__":
    main()
