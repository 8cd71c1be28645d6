"""What do position methods cost: prefill and decoding past the trained length, and below it?

    python -m benchmarks.position_methods [--method leaky-rerope:factor=3,window=4096] [--context 16384] [--rounds 5]

The plain model and the extended one run in turns in one process; a ratio compares the two of the same round, so below 1
the method is slower in tokens per second, and above 1 its prefill takes longer. Prefill: the first layers of smollm2
(--layers) read the context at once. Decoding: all layers of smollm2 decode after a context of random cached keys and
values, 8 tokens at a time, with far keys that are kept rotated, and with far keys rotated again for every token.
Writes results/position_methods.json after each of them.
"""

from __future__ import annotations

import argparse
import copy
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from transformers import DynamicCache

import ropewalk as rw
from benchmarks.common import save_result
from ropewalk.compat.transformers import cache_for_call
from ropewalk.models.far_keys import FarKeys
from ropewalk.models.key_state import get_key_state

TOKENS_PER_ROUND = 8
SHORT = 4096  # tokens, below the trained length of smollm2


class Decoder:
    """A model that decodes after a context of random keys and values."""

    def __init__(self, model: Any, context: int, keeps_far_keys: bool) -> None:
        self.model, self.keeps_far_keys = model, keeps_far_keys
        self.cache = DynamicCache(config=model.config)
        self.next_BT = torch.ones(1, 1, dtype=torch.int64)
        self.decode(1)
        generator = torch.Generator().manual_seed(0)
        for layer in self.cache.layers:
            shape = *layer.keys.shape[:2], context - 1, layer.keys.shape[3]
            for name in ("keys", "values"):
                more = torch.randn(shape, generator=generator).to(layer.keys.dtype)
                setattr(layer, name, torch.cat([getattr(layer, name), more], dim=2))
        state = get_key_state(self.cache)
        if state is not None:
            state.append(torch.arange(1, context)[None])
        self.decode(2)

    def decode(self, tokens: int) -> float:
        """Decode tokens and return the seconds."""
        started = time.perf_counter()
        with torch.inference_mode():
            for _ in range(tokens):
                state = get_key_state(self.cache)
                if state is not None and not self.keeps_far_keys:
                    state.far_keys = FarKeys()
                logits_BTV = self.model(self.next_BT, **cache_for_call(self.model, self.cache), logits_to_keep=1).logits
                self.next_BT = logits_BTV[:, -1:].argmax(-1)
        return time.perf_counter() - started

    def far_key_bytes(self) -> int:
        """Return the memory of the rotated keys."""
        state = get_key_state(self.cache)
        far_keys = None if state is None else state.far_keys
        kept = [] if far_keys is None else [each for layer in far_keys.layers.values() for each in layer.values()]
        return sum(each.keys.untyped_storage().nbytes() for each in kept if each.keys is not None)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--method", default="leaky-rerope:factor=3,window=4096")
    parser.add_argument("--context", type=int, default=16_384)
    parser.add_argument("--layers", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--prefill-rounds", type=int, default=2)
    parser.add_argument("--dtype", default="float32")
    args = parser.parse_args()
    model, _ = rw.load("smollm2", dtype=args.dtype)
    extended = rw.extend(copy.deepcopy(model), args.method)
    options = {name: value for name, value in vars(args).items() if name != "method"}
    rows: list[dict[str, Any]] = []

    def add(name: str, runs: dict[str, Callable[[], float]], rounds: int) -> None:
        rows.append(measure(name, runs, rounds))
        save_result("position_methods", {"method": args.method, **options, "rows": rows})

    for name, context in (("decode", args.context), ("decode below the trained length", SHORT)):
        add(name, decoders(model, extended, context), args.rounds)
    few_layers = copy.deepcopy(model)
    few_layers.model.layers = few_layers.model.layers[: args.layers]
    few_layers.config.num_hidden_layers = args.layers
    few_extended = rw.extend(copy.deepcopy(few_layers), args.method)
    for name, length in (("prefill", args.context), ("prefill below the trained length", SHORT)):
        add(
            name, {"plain": prefill(few_layers, length), "extended": prefill(few_extended, length)}, args.prefill_rounds
        )


def decoders(model: Any, extended: Any, context: int) -> dict[str, Callable[[], float]]:
    """Return the runs to compare, after one token each, and print the memory of the far keys."""
    variants = {
        "plain": Decoder(model, context, keeps_far_keys=True),
        "extended": Decoder(extended, context, keeps_far_keys=True),
        "extended, keys rotated for every token": Decoder(extended, context, keeps_far_keys=False),
    }
    cache_bytes = sum(layer.keys.nbytes + layer.values.nbytes for layer in variants["plain"].cache.layers)
    far = variants["extended"].far_key_bytes()
    print(f"context {context:,}: KV cache {cache_bytes / 2**20:.0f} MiB, far keys {far / 2**20:.0f} MiB", flush=True)
    return {name: lambda decoder=decoder: decoder.decode(TOKENS_PER_ROUND) for name, decoder in variants.items()}


def prefill(model: Any, length: int) -> Callable[[], float]:
    """Return a run that reads a text of this length at once, and returns the seconds."""
    ids_BT = torch.randint(0, 1000, (1, length), generator=torch.Generator().manual_seed(0))

    def run() -> float:
        started = time.perf_counter()
        with torch.inference_mode():
            model(ids_BT, **cache_for_call(model, DynamicCache(config=model.config)), logits_to_keep=1)
        return time.perf_counter() - started

    return run


def measure(name: str, runs: dict[str, Callable[[], float]], rounds: int) -> dict[str, Any]:
    """Run everything in turns; print and return the medians, and the ratios to the plain model."""
    seconds: dict[str, list[float]] = {variant: [] for variant in runs}
    for index in range(rounds):
        for variant in list(runs) if index % 2 == 0 else list(reversed(runs)):
            seconds[variant].append(runs[variant]())
    row: dict[str, Any] = {"what": name, "variants": []}
    for variant, measured in seconds.items():
        times = [own / plain for own, plain in zip(measured, seconds["plain"], strict=True)]
        ratios = [1 / ratio for ratio in times] if name.startswith("decode") else times
        median = statistics.median(ratios)
        row["variants"].append({"variant": variant, "seconds": measured, "ratio": median, "ratios": ratios})
        spread = f"ratio {median:.3f} ({min(ratios):.3f} to {max(ratios):.3f})"
        print(f"{name:34} {variant:40} {statistics.median(measured):7.2f} s   {spread}", flush=True)
    return row


if __name__ == "__main__":
    main()
