"""What does a perplexity curve cost: one pass for all lengths, against one full pass for each?

    python benchmarks/single_pass.py [--lengths 16] [--longest 16384] [--pairs 3]

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


def seconds_of(work: Callable[[], Any]) -> tuple[Any, float]:
    started = time.perf_counter()
    result = work()
    return result, time.perf_counter() - started


def gib_of(work: Callable[[], Any]) -> float:
    """In a run of its own: the watching thread takes time from the one that computes."""
    with PeakMemory() as memory:
        work()
    return memory.peak / 2**30


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
    """Both ways without bfloat16's rounding, which alone moves a perplexity by 1e-3; short, for a CPU."""
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
    both = {"plain": lambda: plain(model, ids_T), "ours": lambda: rw.perplexity_curve(model, ids_T, lengths)}
    for number in range(args.pairs):
        order = list(both) if number % 2 == 0 else list(reversed(both))  # what comes second may find a warmer machine
        done = {name: seconds_of(both[name]) for name in order}
        (_, plain_seconds), (rows, seconds) = done["plain"], done["ours"]
        speed = plain_seconds / seconds
        pairs.append({"plain_s": plain_seconds, "ours_s": seconds, "speed": speed})
        print(f"plain pass {plain_seconds:5.1f} s   ropewalk {seconds:5.1f} s   speed {speed:.2f} of plain")
    memory = {name: gib_of(work) for name, work in both.items()}
    print(f"peak above the loaded model: plain pass {memory['plain']:.2f} GiB, ropewalk {memory['ours']:.2f} GiB")
    exact = in_float32(tokens)
    with PeakMemory() as peer_memory:
        theirs, peer_seconds = seconds_of(lambda: peer(model, ids_T, lengths))
    memory["peer"] = peer_memory.peak / 2**30
    median = sorted(pair["ours_s"] for pair in pairs)[len(pairs) // 2]
    apart = max(abs(row["ppl"] / theirs[row["length"]] - 1) for row in rows)
    times = peer_seconds / median
    print(f"peer, {args.lengths} full passes: {peer_seconds:.1f} s, {memory['peer']:.2f} GiB: {times:.1f} times ours")
    print(f"perplexities apart by at most {apart:.1e}, relative, in bfloat16; {exact['apart']:.1e} in float32")
    keep(
        "single_pass",
        {
            "lengths": lengths,
            "pairs": pairs,
            "peer_s": peer_seconds,
            "peak_gib": memory,
            "speed_against_plain": sorted(pair["speed"] for pair in pairs)[len(pairs) // 2],
            "times_faster_than_peer": times,
            "relative_difference": {"bfloat16": apart, "float32": exact["apart"]},
            "float32": exact["rows"],
            "ppl": [{"length": row["length"], "ours": row["ppl"], "peer": theirs[row["length"]]} for row in rows],
        },
    )


if __name__ == "__main__":
    main()
