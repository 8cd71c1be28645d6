"""Does the model still find what stands far back, and how far above length / L must the frequencies be made for it?

    python benchmarks/passkey.py policies [--length 12000] [--depths 8]
    python benchmarks/passkey.py margins [--wording "pass key"] [--lengths 9500 12000 16000] [--margins 1.0 1.25]

On smollm2: a five-digit number hidden at evenly spread depths of a text of exactly the given length, answer included.
`policies` lets every way of scaling answer through `generate`. `margins` reads text and answer in one pass with a YaRN
factor of margin x length / 8,192: found says whether each token of the answer was the likeliest, nll how unlikely it
was (nats a token), which tells more than 8 times yes or no; beside it the perplexity of the built-in text at that
length. The wording "number" had the lowest nll of five at 4,000 tokens without scaling. Run again, it goes on.
"""

from __future__ import annotations

import argparse
import random
from collections.abc import Iterator
from typing import Any

import torch
from common import keep, kept

import ropewalk as rw
from ropewalk.evaluate.texts import read_text
from ropewalk.models.key_state import get_key_state

L = 8192
FILLER = "The grass grows. The river runs. The lamp is lit. We walk on. And then we turn back. "
WORDINGS = {  # what stands before the filler, within it, and after it
    "number": (
        "One line of this text holds a number to remember. The rest does not matter.\n\n",
        "\nRemember this number: {key}. The number to remember is {key}.\n",
        "\nWhich number was to remember? The number to remember is",
    ),
    "pass key": (
        "There is one important fact in a long text that is otherwise of no interest. Find it and keep it in mind. "
        "I will ask you about it at the end.\n\n",
        "\nThe pass key is {key}. Remember it. {key} is the pass key.\n",
        "\nWhat is the pass key? The pass key is",
    ),
}
WAYS = {
    "none": ("none", "stepped"),
    "static YaRN 2": ("yarn:factor=2", "stepped"),
    "static YaRN 4": ("yarn:factor=4", "stepped"),
    "stepped": ("dynamic-yarn", "stepped"),
    "continuous, margin 1.1": ("dynamic-yarn", "continuous:margin=1.1"),
    "request": ("dynamic-yarn", "request"),
}


def prompts(
    tokenizer: Any, length: int, depths: int, wording: str = "number"
) -> Iterator[tuple[list[int], list[int], int]]:
    """Prompt, answer (together `length` tokens) and key for each depth, the key between two sentences."""
    dice = random.Random(0)
    before, within, after = WORDINGS[wording]
    for i in range(depths):
        key = dice.randrange(10_000, 100_000)
        texts = (before, FILLER, within.format(key=key), after, f" {key}")
        head, filler, needle, tail, answer = (tokenizer(text, add_special_tokens=False)["input_ids"] for text in texts)
        room = length - len(head) - len(needle) - len(tail) - len(answer)
        lines = (filler * (room // len(filler) + 1))[:room]
        at = int(i / (depths - 1) * room) // len(filler) * len(filler)
        yield head + lines[:at] + needle + lines[at:] + tail, answer, key


def generated(model: Any, tokenizer: Any, ids: list[int], key: int) -> tuple[bool, int]:
    """Whether `generate` says the key, and how often its cached keys turned."""
    ids_BT = torch.tensor([ids])
    out = model.generate(
        ids_BT,
        attention_mask=torch.ones_like(ids_BT),
        max_new_tokens=8,
        do_sample=False,
        return_dict_in_generate=True,
    )
    carried = get_key_state(out.past_key_values)
    turns = 0 if carried is None else carried.rotations
    return str(key) in tokenizer.decode(out.sequences[0, len(ids) :]), turns


def forced(model: Any, ids: list[int], answer: list[int]) -> tuple[bool, float]:
    """Whether every token of the answer is the likeliest, and its mean negative log-likelihood."""
    with torch.inference_mode():
        ids_BT = torch.tensor([ids + answer])
        logits_TV = model(ids_BT, use_cache=False, logits_to_keep=len(answer) + 1).logits[0, :-1].float()
    target_T = torch.tensor(answer)
    return bool((logits_TV.argmax(-1) == target_T).all()), float(torch.nn.functional.cross_entropy(logits_TV, target_T))


def shown(hits: list[bool]) -> str:
    return "".join("+" if hit else "-" for hit in hits)


def by_policy(model: Any, tokenizer: Any, args: argparse.Namespace) -> None:
    rows = kept("passkey_policies").get("rows", [])
    for way, (scaling, policy) in WAYS.items():
        if (way, args.length, args.depths) not in {(row["way"], row["length"], len(row["found"])) for row in rows}:
            rw.restore(model)
            if scaling != "none":
                rw.extend(model, scaling, policy=policy)
            answers = [
                generated(model, tokenizer, ids, key) for ids, _, key in prompts(tokenizer, args.length, args.depths)
            ]
            found, turns = [hit for hit, _ in answers], [count for _, count in answers]
            rows.append({"way": way, "length": args.length, "found": found, "turns": turns})
            keep("passkey_policies", {"rows": rows})
    for row in rows:
        print(f"{row['length']:6,} tokens, {row['way']:14s} {shown(row['found'])} {sum(row['found'])}")


def by_margin(model: Any, tokenizer: Any, args: argparse.Namespace) -> None:
    rows = kept("passkey_margins").get("rows", [])
    tokens = tokenizer(read_text("pydoc").content, verbose=False)["input_ids"]
    for length in args.lengths:
        for margin in args.margins:
            if (args.wording, length, margin) not in {(row["wording"], row["length"], row["margin"]) for row in rows}:
                rw.extend(model, rw.YaRN(factor=max(1.0, margin * length / L)))
                texts = prompts(tokenizer, length, args.depths, args.wording)
                answers = [forced(model, ids, answer) for ids, answer, _ in texts]
                row = {
                    "wording": args.wording,
                    "length": length,
                    "margin": margin,
                    "found": [hit for hit, _ in answers],
                    "nll": [nll for _, nll in answers],
                    "ppl": rw.perplexity_curve(model, tokens, [length])[0]["ppl"],
                }
                rows.append(row)
                keep("passkey_margins", {"rows": rows})
    for row in sorted(rows, key=lambda row: (row["wording"], row["length"], row["margin"])):
        mean = sum(row["nll"]) / len(row["nll"])
        print(
            f"{row['wording']:8s} {row['length']:6,} tokens, margin {row['margin']:4.2f}: {shown(row['found'])} "
            f"nll {mean:5.3f} (worst {max(row['nll']):4.2f})   ppl {row['ppl']:6.3f}"
        )


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("what", choices=["policies", "margins"])
    parser.add_argument("--length", type=int, default=12_000)
    parser.add_argument("--lengths", type=int, nargs="+", default=[9_500, 12_000, 16_000])
    parser.add_argument("--margins", type=float, nargs="+", default=[1.0, 1.1, 1.25, 1.5])
    parser.add_argument("--wording", choices=WORDINGS, default="number")
    parser.add_argument("--depths", type=int, default=8)
    args = parser.parse_args()
    model, tokenizer = rw.load("smollm2")
    (by_policy if args.what == "policies" else by_margin)(model, tokenizer, args)


if __name__ == "__main__":
    main()
