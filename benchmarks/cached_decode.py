"""How much slower is decoding when the keys in the KV cache follow a dynamic scaling?

    python -m benchmarks.cached_decode [--contexts 4096 12288 16000] [--rounds 6] [--layers 30]

A model of SmolLM2's shape decodes after a context with static YaRN 2 and with dynamic YaRN under each policy, 32 tokens
at a time in alternating rounds, each with its own cache. Weights and context are random numbers, on which the time does
not depend. The time of a token is the median of its round. The ratio is the speed relative to static YaRN in the same
round. `turns` counts how often the cached keys were rotated while decoding. Writes results/cached_decode.json.
"""

from __future__ import annotations

import argparse
import copy
import statistics
import time
import warnings
from typing import Any

import torch
from transformers import DynamicCache, LlamaConfig, LlamaForCausalLM

import ropewalk as rw
from benchmarks.common import save_result
from ropewalk.compat.transformers import cache_for_call
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

    def __init__(self, model: Any, variant: str, context: int) -> None:
        self.model = copy.deepcopy(model)
        self.cache = DynamicCache(config=model.config)
        scaling, policy = VARIANTS[variant]
        if scaling != "none":
            rw.extend(self.model, scaling, policy=policy)
        self._fill_cache(context)
        self.decode(1)
        self.rotations_in_context = self.count_rotations()

    def decode(self, tokens: int) -> float:
        """Decode tokens and return the median of their seconds."""
        seconds = []
        with torch.inference_mode():
            for _ in range(tokens):
                started = time.perf_counter()
                self.model(torch.ones(1, 1, dtype=torch.int64), **cache_for_call(self.model, self.cache))
                seconds.append(time.perf_counter() - started)
        return statistics.median(seconds)

    def _fill_cache(self, context: int) -> None:
        """Let the model read one token, and add random keys and values for the rest of the context."""
        with torch.inference_mode():
            self.model(torch.ones(1, 1, dtype=torch.int64), **cache_for_call(self.model, self.cache))
            for layer in self.cache.layers:
                for name in ("keys", "values"):
                    first = getattr(layer, name)
                    others = torch.randn(*first.shape[:-2], context - 1, first.shape[-1]).to(first)
                    setattr(layer, name, torch.cat([first, others], dim=-2))
            state = get_key_state(self.cache)
            if state is not None:
                state.append(torch.arange(1, context)[None])

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
        tensors = [snapshot.buffers[at].memory for snapshot in state.snapshots.values() for at in snapshot.keys]
        return sum(keys.numel() * keys.itemsize for keys in tensors if keys is not None)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--contexts", type=int, nargs="+", default=[4096, 12288, 16000])
    parser.add_argument("--rounds", type=int, default=6)
    parser.add_argument("--layers", type=int, default=30)
    parser.add_argument("--dtype", default="bfloat16")
    args = parser.parse_args()
    warnings.filterwarnings("ignore", "transformers cannot express")  # nothing is saved here
    model = make_model(args.layers).to(getattr(torch, args.dtype))
    rows = []
    for context in args.contexts:
        rows += measure_context(model, context, args.rounds)
        settings = {"layers": args.layers, "dtype": args.dtype}
        save_result(
            "cached_decode", {**settings, "tokens_at_a_time": TOKENS_PER_ROUND, "rounds": args.rounds, "rows": rows}
        )


def make_model(layers: int) -> Any:
    """Return a model of the shape of SmolLM2-135M with this many layers and random weights."""
    config = LlamaConfig(
        vocab_size=49_152,
        hidden_size=576,
        intermediate_size=1536,
        num_hidden_layers=layers,
        num_attention_heads=9,
        num_key_value_heads=3,
        max_position_embeddings=8192,
        rope_parameters={"rope_type": "default", "rope_theta": 100_000.0},
        tie_word_embeddings=True,
    )
    return LlamaForCausalLM(config).eval()


def measure_context(model: Any, context: int, rounds: int) -> list[dict[str, Any]]:
    """Return a row per variant."""
    decoders = {variant: Decoder(model, variant, context) for variant in VARIANTS}
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
            "context": context,
            "way": variant,
            "tokens_per_second": 1 / statistics.median(seconds[variant]),
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
