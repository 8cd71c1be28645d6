"""A text that grows past the trained length in the KV cache: what do today's ways of scaling do to it, and ours?

    python benchmarks/cached_curve.py [--text pydoc] [--length 16384] [--chunk 512] [--dtype bfloat16] [--ways NAME ...]

smollm2 reads a text through the cache, chunk by chunk, as a chat does. Compared: no scaling; the native model with a
window of its trained length, which is read anew for every chunk (many times the work) or whose old keys are dropped
from the cache; static YaRN; dynamic scalings that leave the cached keys as they were, which is what the libraries do
that offer them; and ours, whose keys follow. Rows are kept as they come; run again, it goes on.
"""

from __future__ import annotations

import argparse
import math
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import torch
from common import keep, kept
from torch import nn
from transformers import DynamicCache

import ropewalk as rw
from ropewalk.evaluate.perplexity import token_nll
from ropewalk.evaluate.texts import read_text
from ropewalk.models.key_state import KeyState

L = 8192
POINTS = 1024  # a point of the curve every so many tokens
WAYS = {
    "none": ("none", "stepped"),
    "static YaRN 2": ("yarn:factor=2", "stepped"),
    "static YaRN 4": ("yarn:factor=4", "stepped"),
    "dynamic YaRN, stepped": ("dynamic-yarn", "stepped"),
    "dynamic YaRN, continuous": ("dynamic-yarn", "continuous"),
    "dynamic YaRN, continuous, margin 1.1": ("dynamic-yarn", "continuous:margin=1.1"),
    "dynamic NTK, continuous, margin 1.1": ("dynamic-ntk", "continuous:margin=1.1"),
    "native window, read anew": ("window", "stepped"),
    "native window, old keys dropped": ("dropped", "stepped"),
    "dynamic NTK, stale keys": ("dynamic-ntk", "continuous:every=1,margin=1"),
    "dynamic YaRN, stale keys": ("dynamic-yarn", "continuous:every=1,margin=1"),
    "stepped YaRN, stale keys": ("dynamic-yarn", "stepped"),
}


@contextmanager
def stale() -> Iterator[None]:
    """Inside, cached keys stay as they are when the frequencies change."""
    rotate_keys = KeyState.rotate_keys
    KeyState.rotate_keys = lambda self, cache, rows, *_: setattr(self, "row_frequencies", dict(rows))  # type: ignore[method-assign]
    try:
        yield
    finally:
        KeyState.rotate_keys = rotate_keys  # type: ignore[method-assign]


def anew_nll(model: Any, ids_T: torch.Tensor, chunk: int) -> list[float]:
    """The unscaled model, which reads for every chunk past L the last 8,192 tokens from nothing."""
    losses = [loss for part in token_nll(model, ids_T[: L + 1], chunk=chunk) for loss in part.tolist()]
    while len(losses) < len(ids_T) - 1:
        end = min(len(losses) + 1 + chunk, len(ids_T))
        new = end - 1 - len(losses)
        losses += next(token_nll(model, ids_T[end - L : end], chunk=L)).tolist()[-new:]
    return losses


def dropped_nll(model: Any, ids_T: torch.Tensor, chunk: int) -> list[float]:
    """The unscaled model, each token seeing itself and the 8,191 before it; keys before those leave the cache."""
    cache, losses = DynamicCache(config=model.config), []
    for start in range(0, len(ids_T), chunk):
        part_BT = ids_T[None, start : start + chunk]
        end = start + part_BT.shape[1]
        first = max(0, start - L + 1)  # of the tokens that anyone here sees
        for layer in cache.layers:
            if start:
                layer.keys = layer.keys[..., first - start :, :]
                layer.values = layer.values[..., first - start :, :]
        to_TK = torch.arange(start, end)[:, None] - torch.arange(first, end)[None]
        mask = ((to_TK >= 0) & (to_TK < L))[None, None]
        with torch.inference_mode():
            positions = torch.arange(start, end)[None]
            logits_TV = model(part_BT, attention_mask=mask, position_ids=positions, past_key_values=cache).logits[0]
        targets_T = ids_T[start + 1 : end + 1]
        losses += nn.functional.cross_entropy(logits_TV[: len(targets_T)].float(), targets_T, reduction="none").tolist()
    return losses


def read(model: Any, ids_T: torch.Tensor, way: str, chunk: int) -> list[float]:
    scaling, policy = WAYS[way]
    rw.restore(model)
    if scaling in ("window", "dropped"):
        return (anew_nll if scaling == "window" else dropped_nll)(model, ids_T, chunk)
    rw.extend(model, scaling, policy=policy)
    with stale() if "stale" in way else nullcontext():
        return [loss for part in token_nll(model, ids_T, chunk=chunk) for loss in part.tolist()]


def perplexity(losses: list[float], begin: int, end: int) -> float:
    """Over the tokens from `begin` to `end`; the first of a text is not predicted."""
    part = losses[max(0, begin - 1) : end - 1]
    return math.exp(sum(part) / len(part))


DRAWN = {  # name, colour, line, label
    "none": ("#222222", "-", "no scaling"),
    "static YaRN 2": ("C0", "-", "static YaRN 2"),
    "static YaRN 4": ("C4", "-", "static YaRN 4"),
    "dynamic NTK, stale keys": ("C1", ":", "dynamic NTK, stale keys"),
    "dynamic YaRN, stale keys": ("C3", ":", "dynamic YaRN, stale keys"),
    "native window, read anew": ("#888888", "--", "native, its last 8,192 tokens read anew"),
    "dynamic YaRN, stepped": ("C2", "-", "dynamic YaRN, keys follow: stepped"),
    "dynamic YaRN, continuous": ("C8", "-", "dynamic YaRN, keys follow: continuous"),
}
NATIVE = "native window, read anew"


def draw(rows: list[dict[str, Any]], length: int, text: str) -> None:
    """Left, the perplexity of each 1,024 tokens; right, how far the good ones are from the native window."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    curves = {row["way"]: row["curve"] for row in rows}
    ends = [POINTS * (i + 1) for i in range(length // POINTS)]
    figure = Figure(figsize=(13, 5.8), dpi=130)
    whole, near = figure.subplots(1, 2, width_ratios=(1, 1.1))
    for way, (colour, line, label) in DRAWN.items():
        whole.plot(ends, curves[way], line, color=colour, linewidth=1.8)
        # Over all tokens so far past a point, as single thousands of tokens jump about.
        over = [100 * (_so_far(curves[way], i) / _so_far(curves[NATIVE], i) - 1) for i in range(len(ends))]
        near.plot(ends, over, line, color=colour, linewidth=1.8, label=label)
    whole.set_yscale("log")
    whole.set_title(f"smollm2 reading {text} through the KV cache", loc="left")
    whole.set_ylabel("perplexity of the last 1,024 tokens (log scale)")
    whole.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    whole.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    whole.yaxis.set_minor_formatter(NullFormatter())
    near.set_ylim(-2, 20)
    near.set_title("perplexity over all tokens read, against the native window", loc="left")
    near.set_yticks(range(0, 21, 5), ["0", "+5 %", "+10 %", "+15 %", "+20 %"])
    for axes in (whole, near):
        axes.set_xlabel("tokens read")
        axes.set_xticks(
            range(0, length + 1, 4096), ["0", *(f"{tick // 1024}k" for tick in range(4096, length + 1, 4096))]
        )
        axes.axvline(L, color="#888888", linestyle="--", linewidth=1)
        axes.grid(alpha=0.25)
        for side in ("top", "right"):
            axes.spines[side].set_visible(False)
    whole.text(L, 0.98, " trained on 8,192", transform=whole.get_xaxis_transform(), color="#666666", va="top")
    figure.legend(*near.get_legend_handles_labels(), frameon=False, fontsize=9, ncols=4, loc="lower center")
    figure.tight_layout(rect=(0, 0.1, 1, 1))
    figure.savefig(Path(__file__).parent.parent / "docs" / f"dynamic_{text}.png")


def _so_far(curve: list[float], last: int) -> float:
    return math.exp(sum(math.log(ppl) for ppl in curve[: last + 1]) / (last + 1))


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--text", default="pydoc")
    parser.add_argument("--length", type=int, default=2 * L)
    parser.add_argument("--chunk", type=int, default=512)
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=list(WAYS))
    args = parser.parse_args()
    name = f"cached_curve_{Path(args.text).stem}_{args.length}"
    name += "" if args.dtype == "bfloat16" else f"_{args.dtype}"
    rows = [row for row in kept(name).get("rows", []) if row["chunk"] == args.chunk]
    missing = [way for way in args.ways if way not in {row["way"] for row in rows}]
    if missing:
        model, tokenizer = rw.load("smollm2", dtype=args.dtype)
        ids_T = torch.tensor(tokenizer(read_text(args.text).content, verbose=False)["input_ids"][: args.length])
    for way in missing:
        started = time.perf_counter()
        losses = read(model, ids_T, way, args.chunk)
        row = {
            "way": way,
            "scaling": WAYS[way][0],
            "policy": WAYS[way][1],
            "chunk": args.chunk,
            "0-8k": perplexity(losses, 0, L),
            "8k-12k": perplexity(losses, L, min(3 * L // 2, args.length)),
            "8k-end": perplexity(losses, L, args.length),
            "curve": [perplexity(losses, end - POINTS, end) for end in range(POINTS, args.length + 1, POINTS)],
            "seconds": round(time.perf_counter() - started, 1),
        }
        rows.append(row)
        keep(name, {"text": Path(args.text).stem, "length": args.length, "points": POINTS, "rows": rows})
    rows.sort(key=lambda row: list(WAYS).index(row["way"]))
    if len(rows) == len(WAYS):
        draw(rows, args.length, Path(args.text).stem)
    for row in rows:
        print(f"{row['way']:36s} 0-8k {row['0-8k']:7.3f}   8k-12k {row['8k-12k']:8.3f}   8k-end {row['8k-end']:8.3f}")


if __name__ == "__main__":
    main()
