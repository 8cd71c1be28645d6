"""How much slower is decoding when the keys in the KV cache follow a dynamic scaling?

    python -m benchmarks.cached_decode [--contexts 4096 12288 16000] [--rounds 6]

smollm2 decodes after a context with static YaRN 2 and with dynamic YaRN under each policy, 32 tokens at a time in
alternating rounds, each with its own model and cache. The ratio is the speed relative to static YaRN in the same round.
`turns` counts how often the cached keys were rotated while decoding. Writes results/cached_decode.json.
"""

from __future__ import annotations

import argparse
import copy
import statistics
import time
from typing import Any

import torch
from transformers import DynamicCache

import ropewalk as rw
from benchmarks.common import save_result
from ropewalk.evaluate.texts import read_text
from ropewalk.models.key_state import get_key_state

TOKENS_PER_ROUND = 32
WARMUP_TOKENS = 4
STATIC = "static YaRN 2"
VARIANTS = {  # scaling and policy
    "plain model": ("none", "stepped"),
    STATIC: ("yarn:factor=2", "stepped"),
    "stepped": ("dynamic-yarn", "stepped"),
    "continuous": ("dynamic-yarn", "continuous"),
    "continuous:every=1": ("dynamic-yarn", "continuous:every=1"),
}


class Decoder:
    """A model with one scaling, and its cache with a context in it."""

    def __init__(self, model: Any, variant: str, context_T: torch.Tensor) -> None:
        self.model = copy.deepcopy(model)
        self.cache = DynamicCache(config=model.config)
        scaling, policy = VARIANTS[variant]
        if scaling != "none":
            rw.extend(self.model, scaling, policy=policy)
        self.next_BT = context_T[None]
        self.decode(1)
        self.rotations_in_context = self.count_rotations()

    def decode(self, tokens: int) -> float:
        """Decode tokens and return the seconds."""
        started = time.perf_counter()
        with torch.inference_mode():
            for _ in range(tokens):
                logits_BTV = self.model(self.next_BT, past_key_values=self.cache, logits_to_keep=1).logits
                self.next_BT = logits_BTV[:, -1:].argmax(-1)
        return time.perf_counter() - started

    def count_rotations(self) -> int:
        """Return how often the cached keys were rotated so far."""
        state = get_key_state(self.cache)
        return 0 if state is None else state.rotations

    def key_bytes(self) -> int:
        return sum(layer.keys.numel() * layer.keys.itemsize for layer in self.cache.layers)

    def snapshot_bytes(self) -> int:
        """Return the memory of the copies of keys from which later rotations start."""
        state = get_key_state(self.cache)
        if state is None:
            return 0
        tensors = [keys for snapshot in state.snapshots.values() for keys in snapshot.keys.values()]
        return sum(keys.numel() * keys.itemsize for keys in tensors)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--contexts", type=int, nargs="+", default=[4096, 12288, 16000])
    parser.add_argument("--rounds", type=int, default=6)
    args = parser.parse_args()
    model, tokenizer = rw.load("smollm2")
    ids_T = torch.tensor(tokenizer(read_text("pydoc").content, verbose=False)["input_ids"])
    rows = []
    for context in args.contexts:
        rows += measure_context(model, ids_T[:context], args.rounds)
        save_result("cached_decode", {"tokens_at_a_time": TOKENS_PER_ROUND, "rounds": args.rounds, "rows": rows})


def measure_context(model: Any, context_T: torch.Tensor, rounds: int) -> list[dict[str, Any]]:
    """Return a row per variant."""
    decoders = {variant: Decoder(model, variant, context_T) for variant in VARIANTS}
    for decoder in decoders.values():
        decoder.decode(WARMUP_TOKENS)
    seconds: dict[str, list[float]] = {variant: [] for variant in VARIANTS}
    for index in range(rounds):
        order = list(VARIANTS) if index % 2 == 0 else list(reversed(VARIANTS))
        for variant in order:
            seconds[variant].append(decoders[variant].decode(TOKENS_PER_ROUND))
    rows = []
    for variant, decoder in decoders.items():
        ratios = [static / own for static, own in zip(seconds[STATIC], seconds[variant], strict=True)]
        row = {
            "context": len(context_T),
            "way": variant,
            "tokens_per_second": TOKENS_PER_ROUND / statistics.median(seconds[variant]),
            "ratio_to_static": statistics.median(ratios),
            "ratios": ratios,
            "turns": decoder.count_rotations() - decoder.rotations_in_context,
            "keys_mib": decoder.key_bytes() / 2**20,
            "reference_mib": decoder.snapshot_bytes() / 2**20,
        }
        rows.append(row)
        print(
            f"{row['context']:6,} {variant:20s} {row['tokens_per_second']:6.2f} tokens/s   "
            f"ratio {row['ratio_to_static']:5.3f} ({min(ratios):.3f} to {max(ratios):.3f})   "
            f"rotations {row['turns']:4d}   keys {row['keys_mib']:.0f} MiB, copies {row['reference_mib']:.0f} MiB",
            flush=True,
        )
    return rows


if __name__ == "__main__":
    main()
