"""What does following the text cost while decoding?

    python benchmarks/cached_decode.py [--contexts 4096 12288 16000] [--rounds 6]

smollm2 decodes behind a context under static YaRN 2 and under dynamic YaRN by each policy, in turn, 32 tokens at a
time, each with a model and a cache of its own; the ratio is of tokens per second to the static scaling's in the same
round. `turns` counts how often cached keys were turned while decoding.
"""

from __future__ import annotations

import argparse
import copy
import statistics
import time
from typing import Any

import torch
from common import keep
from transformers import DynamicCache

import ropewalk as rw
from ropewalk.evaluate.texts import read_text
from ropewalk.models.key_state import get_key_state

AT_A_TIME = 32
WAYS = {
    "plain model": None,
    "static YaRN 2": ("yarn:factor=2", "stepped"),
    "stepped": ("dynamic-yarn", "stepped"),
    "continuous": ("dynamic-yarn", "continuous"),
    "continuous:every=1": ("dynamic-yarn", "continuous:every=1"),
}


class Decoder:
    """One way of scaling with its model and its cache."""

    def __init__(self, model: Any, way: str, ids_T: torch.Tensor) -> None:
        self.model = copy.deepcopy(model)
        self.cache = DynamicCache(config=model.config)
        if WAYS[way] is not None:
            scaling, policy = WAYS[way]  # type: ignore[misc]
            rw.extend(self.model, scaling, policy=policy)
        self.token_BT = ids_T[None]
        self.decode(1)
        self.turned = self.turns

    @property
    def turns(self) -> int:
        carried = get_key_state(self.cache)
        return 0 if carried is None else carried.rotations

    def decode(self, tokens: int) -> float:
        """Seconds for so many tokens."""
        started = time.perf_counter()
        with torch.inference_mode():
            for _ in range(tokens):
                logits_BTV = self.model(self.token_BT, past_key_values=self.cache, logits_to_keep=1).logits
                self.token_BT = logits_BTV[:, -1:].argmax(-1)
        return time.perf_counter() - started


def reference_bytes(cache: Any) -> int:
    carried = get_key_state(cache)
    held = [] if carried is None else list(carried.snapshots.values())
    return sum(keys.numel() * keys.itemsize for each in held for keys in each.keys.values())


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--contexts", type=int, nargs="+", default=[4096, 12288, 16000])
    parser.add_argument("--rounds", type=int, default=6)
    args = parser.parse_args()
    model, tokenizer = rw.load("smollm2")
    ids_T = torch.tensor(tokenizer(read_text("pydoc").content, verbose=False)["input_ids"])
    rows = []
    for context in args.contexts:
        decoders = {way: Decoder(model, way, ids_T[:context]) for way in WAYS}
        for decoder in decoders.values():
            decoder.decode(4)
        seconds: dict[str, list[float]] = {way: [] for way in WAYS}
        for round_number in range(args.rounds):
            order = list(WAYS) if round_number % 2 == 0 else list(reversed(WAYS))
            for way in order:
                seconds[way].append(decoders[way].decode(AT_A_TIME))
        for way, decoder in decoders.items():
            ratios = [static / own for static, own in zip(seconds["static YaRN 2"], seconds[way], strict=True)]
            keys = sum(layer.keys.numel() * layer.keys.itemsize for layer in decoder.cache.layers)
            row = {
                "context": context,
                "way": way,
                "tokens_per_second": AT_A_TIME / statistics.median(seconds[way]),
                "ratio_to_static": statistics.median(ratios),
                "ratios": ratios,
                "turns": decoder.turns - decoder.turned,
                "keys_mib": keys / 2**20,
                "reference_mib": reference_bytes(decoder.cache) / 2**20,
            }
            rows.append(row)
            print(
                f"{context:6,} {way:20s} {row['tokens_per_second']:6.2f} tokens/s   "
                f"ratio {row['ratio_to_static']:5.3f} ({min(ratios):.3f} to {max(ratios):.3f})   "
                f"turns {row['turns']:4d}   keys {row['keys_mib']:.0f} MiB, reference {row['reference_mib']:.0f} MiB",
                flush=True,
            )
        keep("cached_decode", {"tokens_at_a_time": AT_A_TIME, "rounds": args.rounds, "rows": rows})


if __name__ == "__main__":
    main()
