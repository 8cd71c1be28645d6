"""What does a perplexity curve cost in one pass for all lengths, compared with a full pass for each length?

    python -m benchmarks.single_pass [--lengths 16] [--longest 16384] [--pairs 3]

On smollm2 and the built-in text, in one process:
    ours    `perplexity_curve`: one pass, logits in blocks
    plain   one forward pass at the longest length without a loss, the lower limit
    peer    the method of the YaRN paper's repository: per length a full pass with all logits in memory
ours and plain alternate. Peak memory is that of the process above the loaded model, sampled by a thread in separate
runs. Writes results/single_pass.json.
"""

from __future__ import annotations

import argparse
import gc
import statistics
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

import ropewalk as rw
from benchmarks.common import save_result
from ropewalk.evaluate.texts import read_text


class PeakMemory:
    """Measure the peak of resident memory inside a block, in bytes above that at its beginning."""

    def __enter__(self) -> PeakMemory:
        gc.collect()
        self.start, self.peak, self.is_running = resident_bytes(), 0, True
        self.thread = threading.Thread(target=self._sample)
        self.thread.start()
        return self

    def _sample(self) -> None:
        while self.is_running:
            self.peak = max(self.peak, resident_bytes() - self.start)
            time.sleep(0.005)

    def __exit__(self, *_: object) -> None:
        self.is_running = False
        self.thread.join()


def resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096


def time_call(function: Callable[[], Any]) -> tuple[Any, float]:
    """Return the result of a function and the seconds that it took."""
    started = time.perf_counter()
    result = function()
    return result, time.perf_counter() - started


def measure_peak_gib(function: Callable[[], Any]) -> float:
    with PeakMemory() as memory:
        function()
    return memory.peak / 2**30


def peer_curve(model: Any, ids_T: torch.Tensor, lengths: list[int]) -> dict[int, float]:
    """Return the perplexity at each length, from a full pass per length."""
    perplexities = {}
    for length in lengths:
        with torch.inference_mode():
            ids_BT = ids_T[None, :length]
            perplexities[length] = float(torch.exp(model(ids_BT, labels=ids_BT, use_cache=False).loss))
    return perplexities


def plain_pass(model: Any, ids_T: torch.Tensor) -> None:
    with torch.inference_mode():
        model(ids_T[None], use_cache=False)


def compare(curve: list[dict[str, Any]], peer: dict[int, float]) -> tuple[list[dict[str, Any]], float]:
    """Return rows with both perplexities, and their largest relative difference."""
    rows = [{"length": row["length"], "ours": row["ppl"], "peer": peer[row["length"]]} for row in curve]
    return rows, max(abs(row["ours"] / row["peer"] - 1) for row in rows)


def compare_in_float32(tokens: list[int]) -> tuple[list[dict[str, Any]], float]:
    """Compare both on a short text in float32: the rounding of bfloat16 alone changes a perplexity by 1e-3."""
    model, _ = rw.load("smollm2", dtype="float32")
    ids_T, lengths = torch.tensor(tokens[:4096]), [1024, 2048, 3072, 4096]
    return compare(rw.perplexity_curve(model, ids_T, lengths), peer_curve(model, ids_T, lengths))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--lengths", type=int, default=16, help="points of the curve")
    parser.add_argument("--longest", type=int, default=16384, help="tokens")
    parser.add_argument("--pairs", type=int, default=3, help="rounds of plain and ours")
    args = parser.parse_args()
    model, tokenizer = rw.load("smollm2")
    tokens = tokenizer(read_text("pydoc").content, verbose=False)["input_ids"]
    ids_T = torch.tensor(tokens[: args.longest])
    lengths = [args.longest * (i + 1) // args.lengths for i in range(args.lengths)]
    rw.perplexity_curve(model, ids_T, [1024])  # warm up
    plain_pass(model, ids_T[:1024])
    functions = {"plain": lambda: plain_pass(model, ids_T), "ours": lambda: rw.perplexity_curve(model, ids_T, lengths)}
    pairs = []
    for index in range(args.pairs):
        order = list(functions) if index % 2 == 0 else list(reversed(functions))
        timed = {name: time_call(functions[name]) for name in order}
        (_, plain_seconds), (curve, seconds) = timed["plain"], timed["ours"]
        speed = plain_seconds / seconds
        pairs.append({"plain_s": plain_seconds, "ours_s": seconds, "speed": speed})
        print(f"plain pass {plain_seconds:5.1f} s   ropewalk {seconds:5.1f} s   speed {speed:.2f} of plain")
    # Separate runs: the sampling thread slows the computation down.
    peak_gib = {name: measure_peak_gib(function) for name, function in functions.items()}
    print(f"peak above the loaded model: plain pass {peak_gib['plain']:.2f} GiB, ropewalk {peak_gib['ours']:.2f} GiB")
    float32_rows, float32_difference = compare_in_float32(tokens)
    with PeakMemory() as peer_memory:
        peer, peer_seconds = time_call(lambda: peer_curve(model, ids_T, lengths))
    peak_gib["peer"] = peer_memory.peak / 2**30
    times = peer_seconds / statistics.median_high(pair["ours_s"] for pair in pairs)
    print(f"peer, {args.lengths} full passes: {peer_seconds:.1f} s, {peak_gib['peer']:.2f} GiB: {times:.1f} times ours")
    rows, difference = compare(curve, peer)
    print(f"largest relative difference of perplexities: bfloat16 {difference:.1e}, float32 {float32_difference:.1e}")
    save_result(
        "single_pass",
        {
            "lengths": lengths,
            "pairs": pairs,
            "peer_s": peer_seconds,
            "peak_gib": peak_gib,
            "speed_against_plain": statistics.median_high(pair["speed"] for pair in pairs),
            "times_faster_than_peer": times,
            "relative_difference": {"bfloat16": difference, "float32": float32_difference},
            "float32": float32_rows,
            "ppl": rows,
        },
    )


if __name__ == "__main__":
    main()
