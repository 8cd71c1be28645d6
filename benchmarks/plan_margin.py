"""How far above target / L must a YaRN factor be, for retrieval to hold?

    python benchmarks/plan_margin.py [--lengths 12000] [--depths 8] [--margins 1.0 1.1 1.25 1.37]

On smollm2: a five-digit passkey hidden at evenly spread depths of a text of the given length, read with a YaRN
factor of margin x length / 8,192; and the perplexity of the built-in text at that length under the same factor.
"""

from __future__ import annotations

import argparse
import random
from typing import Any

import torch
from common import keep

import ropewalk as rw
from ropewalk.evaluate.texts import read_text

FILLER = "The grass grows. The river runs. The lamp is lit. We walk on. And then we turn back. "
HEAD = (
    "There is one important fact in a long text that is otherwise of no interest. Find it and keep it in mind. "
    "I will ask you about it at the end.\n\n"
)
NEEDLE = "\nThe pass key is {key}. Remember it. {key} is the pass key.\n"
TAIL = "\nWhat is the pass key? The pass key is"


def prompt(tokenizer: Any, length: int, depth: float, key: int) -> list[int]:
    """Exactly `length` tokens, the key between two sentences of the filler."""
    texts = (HEAD, FILLER, NEEDLE.format(key=key), TAIL)
    head, filler, needle, tail = (tokenizer(text, add_special_tokens=False)["input_ids"] for text in texts)
    room = length - len(head) - len(needle) - len(tail)
    lines = (filler * (room // len(filler) + 1))[:room]
    at = int(depth * room) // len(filler) * len(filler)
    return head + lines[:at] + needle + lines[at:] + tail


def found(model: Any, tokenizer: Any, ids: list[int], key: int) -> bool:
    ids_BT = torch.tensor([ids])
    mask_BT = torch.ones_like(ids_BT)
    answer = model.generate(ids_BT, attention_mask=mask_BT, max_new_tokens=8, do_sample=False)
    return str(key) in tokenizer.decode(answer[0, len(ids) :])


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--lengths", type=int, nargs="+", default=[12000])
    parser.add_argument("--margins", type=float, nargs="+", default=[1.0, 1.1, 1.25, 1.37])
    parser.add_argument("--depths", type=int, default=8)
    args = parser.parse_args()
    model, tokenizer = rw.load("smollm2")
    tokens = tokenizer(read_text("pydoc").content, verbose=False)["input_ids"]
    rows = []
    for length in args.lengths:
        for margin in args.margins:
            factor = margin * (length + 8) / 8192  # prompt and answer
            rw.extend(model, rw.YaRN(factor=factor))
            dice = random.Random(0)
            hits = []
            for i in range(args.depths):
                key = dice.randrange(10_000, 100_000)
                hits.append(found(model, tokenizer, prompt(tokenizer, length, i / (args.depths - 1), key), key))
            ppl = rw.perplexity_curve(model, tokens, [length])[0]["ppl"]
            rows.append({"length": length, "margin": margin, "factor": factor, "found": hits, "ppl": ppl})
            shown = "".join("+" if hit else "-" for hit in hits)
            print(f"{length:6,} tokens, margin {margin:4.2f}, factor {factor:5.3f}: {shown} ppl {ppl:6.3f}", flush=True)
            keep("plan_margin", {"rows": rows})


if __name__ == "__main__":
    main()
