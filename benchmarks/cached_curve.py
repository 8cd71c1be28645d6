"""What happens to a text that grows past the original length in the KV cache, under each way to scale?

    python -m benchmarks.cached_curve [--text pydoc] [--length 16384] [--chunk 512] [--dtype bfloat16] [--variants ...]

smollm2 reads a text through the cache chunk by chunk, as in a chat. Compared are: no scaling; the unscaled model with a
window of its original length, either read again for every chunk (many times the work) or with old keys dropped from the
cache; static YaRN; dynamic scalings that do not rotate cached keys, which is what other libraries with dynamic scaling
do ("stale keys"); and dynamic scalings that do, which is what ropewalk does.

Writes results/cached_curve_TEXT_LENGTH.json after every variant; an interrupted run continues. With all variants it
draws docs/dynamic_TEXT.png.
"""

from __future__ import annotations

import argparse
import math
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import DynamicCache

import ropewalk as rw
from benchmarks.common import load_result, save_result
from ropewalk.compat.transformers import cache_for_call
from ropewalk.evaluate.native_window import native_window_nll
from ropewalk.evaluate.perplexity import token_nll
from ropewalk.evaluate.texts import read_text
from ropewalk.models.key_state import KeyState

ORIGINAL_LENGTH = 8192
TOKENS_PER_POINT = 1024  # of the curve
NATIVE_WINDOW = "native window, read anew"
DROPPED_KEYS = "native window, old keys dropped"
VARIANTS = {  # scaling and policy
    "none": ("none", "stepped"),
    "static YaRN 2": ("yarn:factor=2", "stepped"),
    "static YaRN 4": ("yarn:factor=4", "stepped"),
    "dynamic YaRN, stepped": ("dynamic-yarn", "stepped"),
    "dynamic YaRN, continuous": ("dynamic-yarn", "continuous"),
    "dynamic YaRN, continuous, margin 1.1": ("dynamic-yarn", "continuous:margin=1.1"),
    "dynamic NTK, continuous, margin 1.1": ("dynamic-ntk", "continuous:margin=1.1"),
    NATIVE_WINDOW: ("window", "stepped"),
    DROPPED_KEYS: ("dropped", "stepped"),
    "dynamic NTK, stale keys": ("dynamic-ntk", "continuous:every=1,margin=1"),
    "dynamic YaRN, stale keys": ("dynamic-yarn", "continuous:every=1,margin=1"),
    "stepped YaRN, stale keys": ("dynamic-yarn", "stepped"),
}
LINES = {  # color, line style and label in the picture
    "none": ("#222222", "-", "no scaling"),
    "static YaRN 2": ("C0", "-", "static YaRN 2"),
    "static YaRN 4": ("C4", "-", "static YaRN 4"),
    "dynamic NTK, stale keys": ("C1", ":", "dynamic NTK, stale keys"),
    "dynamic YaRN, stale keys": ("C3", ":", "dynamic YaRN, stale keys"),
    NATIVE_WINDOW: ("#888888", "--", "unscaled, its last 8,192 tokens read again"),
    "dynamic YaRN, stepped": ("C2", "-", "dynamic YaRN, keys rotated: stepped"),
    "dynamic YaRN, continuous": ("C8", "-", "dynamic YaRN, keys rotated: continuous"),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--text", default="pydoc")
    parser.add_argument("--length", type=int, default=2 * ORIGINAL_LENGTH, help="tokens")
    parser.add_argument("--chunk", type=int, default=512, help="tokens")
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--variants", nargs="+", choices=VARIANTS, metavar="NAME", default=list(VARIANTS))
    args = parser.parse_args()
    text = Path(args.text).stem
    name = f"cached_curve_{text}_{args.length}"
    if args.dtype != "bfloat16":
        name += f"_{args.dtype}"
    rows = [row for row in load_result(name).get("rows", []) if row["chunk"] == args.chunk]
    done = {row["way"] for row in rows}
    missing = [variant for variant in args.variants if variant not in done]
    if missing:
        model, tokenizer = rw.load("smollm2", dtype=args.dtype)
        ids_T = torch.tensor(tokenizer(read_text(args.text).content, verbose=False)["input_ids"][: args.length])
    for variant in missing:
        started = time.perf_counter()
        losses = read_text_in_chunks(model, ids_T, variant, args.chunk)
        row = {
            "way": variant,
            "scaling": VARIANTS[variant][0],
            "policy": VARIANTS[variant][1],
            "chunk": args.chunk,
            "0-8k": perplexity(losses, 0, ORIGINAL_LENGTH),
            "8k-12k": perplexity(losses, ORIGINAL_LENGTH, min(3 * ORIGINAL_LENGTH // 2, args.length)),
            "8k-end": perplexity(losses, ORIGINAL_LENGTH, args.length),
            "curve": [
                perplexity(losses, end - TOKENS_PER_POINT, end)
                for end in range(TOKENS_PER_POINT, args.length + 1, TOKENS_PER_POINT)
            ],
            "seconds": round(time.perf_counter() - started, 1),
        }
        rows.append(row)
        save_result(name, {"text": text, "length": args.length, "points": TOKENS_PER_POINT, "rows": rows})
    rows.sort(key=lambda row: list(VARIANTS).index(row["way"]))
    if len(rows) == len(VARIANTS):
        draw(rows, args.length, text)
    for row in rows:
        print(f"{row['way']:36s} 0-8k {row['0-8k']:7.3f}   8k-12k {row['8k-12k']:8.3f}   8k-end {row['8k-end']:8.3f}")


def read_text_in_chunks(model: Any, ids_T: torch.Tensor, variant: str, chunk: int) -> list[float]:
    """Return the loss of every token but the first, in nats."""
    rw.restore(model)
    if variant == NATIVE_WINDOW:
        return native_window_nll(model, ids_T, ORIGINAL_LENGTH, stride=chunk).tolist()
    if variant == DROPPED_KEYS:
        return read_with_dropped_keys(model, ids_T, chunk)
    scaling, policy = VARIANTS[variant]
    rw.extend(model, scaling, policy=policy)
    with keep_cached_keys() if "stale" in variant else nullcontext():
        return losses_of(model, ids_T, chunk)


def losses_of(model: Any, ids_T: torch.Tensor, chunk: int) -> list[float]:
    return [loss for part in token_nll(model, ids_T, chunk=chunk) for loss in part.tolist()]


@contextmanager
def keep_cached_keys() -> Iterator[None]:
    """Disable the rotation of cached keys inside, so that they keep the frequencies they were computed with."""
    rotate_keys = KeyState.rotate_keys

    def only_record_frequencies(self: KeyState, cache: Any, row_frequencies: Any, *_: Any) -> None:
        self.row_frequencies = dict(row_frequencies)

    KeyState.rotate_keys = only_record_frequencies  # type: ignore[method-assign]
    try:
        yield
    finally:
        KeyState.rotate_keys = rotate_keys  # type: ignore[method-assign]


def read_with_dropped_keys(model: Any, ids_T: torch.Tensor, chunk: int) -> list[float]:
    """Let each token attend to itself and the 8,191 tokens before it; drop the keys of all earlier tokens."""
    cache, losses = DynamicCache(config=model.config), []
    for start in range(0, len(ids_T), chunk):
        part_BT = ids_T[None, start : start + chunk]
        end = start + part_BT.shape[1]
        first_key = max(0, start - ORIGINAL_LENGTH + 1)  # the first that any token of this chunk attends to
        for layer in cache.layers:
            if start:
                layer.keys = layer.keys[..., first_key - start :, :]
                layer.values = layer.values[..., first_key - start :, :]
        distance_TK = torch.arange(start, end)[:, None] - torch.arange(first_key, end)[None]
        mask = ((distance_TK >= 0) & (distance_TK < ORIGINAL_LENGTH))[None, None]
        positions = torch.arange(start, end)[None]
        with torch.inference_mode():
            options = {"attention_mask": mask, "position_ids": positions, **cache_for_call(model, cache)}
            logits_TV = model(part_BT, **options).logits[0]
        targets_T = ids_T[start + 1 : end + 1]
        losses += nn.functional.cross_entropy(logits_TV[: len(targets_T)].float(), targets_T, reduction="none").tolist()
    return losses


def perplexity(losses: Sequence[float], begin: int, end: int) -> float:
    """Return the perplexity of tokens begin .. end - 1; the first token of a text has no loss."""
    part = losses[max(0, begin - 1) : end - 1]
    return math.exp(sum(part) / len(part))


def draw(rows: list[dict[str, Any]], length: int, text: str) -> None:
    """Draw the perplexity of every 1,024 tokens (left) and of all tokens so far relative to the window (right)."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    curves = {row["way"]: row["curve"] for row in rows}
    ends = [TOKENS_PER_POINT * (i + 1) for i in range(length // TOKENS_PER_POINT)]
    figure = Figure(figsize=(13, 5.8), dpi=130)
    absolute, relative = figure.subplots(1, 2, width_ratios=(1, 1.1))
    window_means = running_means(curves[NATIVE_WINDOW])
    for variant, (color, line_style, label) in LINES.items():
        absolute.plot(ends, curves[variant], line_style, color=color, linewidth=1.8)
        # Of all tokens so far: the perplexity of single thousands of tokens varies too much.
        means = running_means(curves[variant])
        percent = [100 * (mean / window_mean - 1) for mean, window_mean in zip(means, window_means, strict=True)]
        relative.plot(ends, percent, line_style, color=color, linewidth=1.8, label=label)
    absolute.set_yscale("log")
    absolute.set_title(f"smollm2 reading {text} through the KV cache", loc="left")
    absolute.set_ylabel("perplexity of the last 1,024 tokens (log scale)")
    absolute.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    absolute.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    absolute.yaxis.set_minor_formatter(NullFormatter())
    relative.set_ylim(-2, 20)
    relative.set_title("perplexity of all tokens read, relative to the native window", loc="left")
    relative.set_yticks(range(0, 21, 5), ["0", "+5 %", "+10 %", "+15 %", "+20 %"])
    ticks = range(0, length + 1, 4096)
    for axes in (absolute, relative):
        axes.set_xlabel("tokens read")
        axes.set_xticks(ticks, ["0", *(f"{tick // 1024}k" for tick in ticks[1:])])
        axes.axvline(ORIGINAL_LENGTH, color="#888888", linestyle="--", linewidth=1)
        axes.grid(alpha=0.25)
        for side in ("top", "right"):
            axes.spines[side].set_visible(False)
    label_position = {"transform": absolute.get_xaxis_transform(), "va": "top"}
    absolute.text(ORIGINAL_LENGTH, 0.98, " original length 8,192", color="#666666", **label_position)
    figure.legend(*relative.get_legend_handles_labels(), frameon=False, fontsize=9, ncols=4, loc="lower center")
    figure.tight_layout(rect=(0, 0.1, 1, 1))
    figure.savefig(Path(__file__).parent.parent / "docs" / f"dynamic_{text}.png")


def running_means(curve: Sequence[float]) -> list[float]:
    """Return for each point the perplexity of all tokens up to it: the geometric mean."""
    logs = [math.log(value) for value in curve]
    return [math.exp(sum(logs[: count + 1]) / (count + 1)) for count in range(len(logs))]


if __name__ == "__main__":
    main()
