"""Does the model find a number in a long text, and which margin of the factor over length / L does that need?

    python -m benchmarks.passkey policies [--length 12000] [--depths 8]
    python -m benchmarks.passkey margins [--wording "pass key"] [--lengths 9500 12000 16000] [--margins 1.0 1.25]

A five-digit number is hidden at evenly spaced depths of a text; text and answer together have exactly the given length.
    policies    smollm2 answers through `generate` under each scaling and policy. Writes results/passkey_policies.json.
    margins     smollm2 reads text and answer in one pass with YaRN of factor margin x length / 8,192. `found`: whether
                every token of the answer is the most likely one; `nll`: its negative log-likelihood in nats per token,
                which tells more than 8 yes or no; and the perplexity of the built-in text at that length. Writes
                results/passkey_margins.json.
The wording "number" has the lowest nll of five at 4,000 tokens without scaling. An interrupted run continues.
"""

from __future__ import annotations

import argparse
import random
from collections.abc import Iterator
from typing import Any

import torch

import ropewalk as rw
from benchmarks.common import load_result, save_result
from ropewalk.compat.transformers import find_output_cache
from ropewalk.evaluate.texts import read_text
from ropewalk.models.key_state import get_key_state

ORIGINAL_LENGTH = 8192
FILLER = "The grass grows. The river runs. The lamp is lit. We walk on. And then we turn back. "
WORDINGS = {  # the text before the filler, inside it and after it
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
VARIANTS = {  # scaling and policy
    "none": ("none", "stepped"),
    "static YaRN 2": ("yarn:factor=2", "stepped"),
    "static YaRN 4": ("yarn:factor=4", "stepped"),
    "stepped": ("dynamic-yarn", "stepped"),
    "continuous, margin 1.1": ("dynamic-yarn", "continuous:margin=1.1"),
    "request": ("dynamic-yarn", "request"),
}


def make_prompts(
    tokenizer: Any, length: int, depths: int, wording: str = "number"
) -> Iterator[tuple[list[int], list[int], int]]:
    """Yield prompt ids, answer ids (together `length` tokens) and the number, for each depth."""
    rng = random.Random(0)
    before, within, after = WORDINGS[wording]
    for index in range(depths):
        key = rng.randrange(10_000, 100_000)
        texts = (before, FILLER, within.format(key=key), after, f" {key}")
        head, filler, needle, tail, answer = (tokenizer(text, add_special_tokens=False)["input_ids"] for text in texts)
        filler_tokens = length - len(head) - len(needle) - len(tail) - len(answer)
        haystack = (filler * (filler_tokens // len(filler) + 1))[:filler_tokens]
        depth = int(index / (depths - 1) * filler_tokens) // len(filler) * len(filler)  # between two repetitions
        yield head + haystack[:depth] + needle + haystack[depth:] + tail, answer, key


def generate_answer(model: Any, tokenizer: Any, prompt: list[int], key: int) -> tuple[bool, int]:
    """Return whether `generate` answers with the number, and how often it rotated the cached keys."""
    ids_BT = torch.tensor([prompt])
    output = model.generate(
        ids_BT,
        attention_mask=torch.ones_like(ids_BT),
        max_new_tokens=8,
        do_sample=False,
        return_dict_in_generate=True,
    )
    cache = find_output_cache(output)
    state = None if cache is None else get_key_state(cache)
    rotations = 0 if state is None else state.rotations
    return str(key) in tokenizer.decode(output.sequences[0, len(prompt) :]), rotations


def score_answer(model: Any, prompt: list[int], answer: list[int]) -> tuple[bool, float]:
    """Return whether every token of the answer is the most likely one, and its mean negative log-likelihood."""
    with torch.inference_mode():
        ids_BT = torch.tensor([prompt + answer])
        logits_TV = model(ids_BT, use_cache=False, logits_to_keep=len(answer) + 1).logits[0, :-1].float()
    target_T = torch.tensor(answer)
    return bool((logits_TV.argmax(-1) == target_T).all()), float(torch.nn.functional.cross_entropy(logits_TV, target_T))


def format_hits(hits: list[bool]) -> str:
    return "".join("+" if hit else "-" for hit in hits)


def compare_policies(model: Any, tokenizer: Any, args: argparse.Namespace) -> None:
    rows = load_result("passkey_policies").get("rows", [])
    done = {(row["way"], row["length"], len(row["found"])) for row in rows}
    for variant, (scaling, policy) in VARIANTS.items():
        if (variant, args.length, args.depths) in done:
            continue
        rw.restore(model)
        if scaling != "none":
            rw.extend(model, scaling, policy=policy)
        prompts = make_prompts(tokenizer, args.length, args.depths)
        answers = [generate_answer(model, tokenizer, prompt, key) for prompt, _, key in prompts]
        found, rotations = [hit for hit, _ in answers], [count for _, count in answers]
        rows.append({"way": variant, "length": args.length, "found": found, "turns": rotations})
        save_result("passkey_policies", {"rows": rows})
    for row in rows:
        print(f"{row['length']:6,} tokens, {row['way']:14s} {format_hits(row['found'])} {sum(row['found'])}")


def compare_margins(model: Any, tokenizer: Any, args: argparse.Namespace) -> None:
    rows = load_result("passkey_margins").get("rows", [])
    done = {(row["wording"], row["length"], row["margin"]) for row in rows}
    tokens = tokenizer(read_text("pydoc").content, verbose=False)["input_ids"]
    for length in args.lengths:
        for margin in args.margins:
            if (args.wording, length, margin) in done:
                continue
            rw.extend(model, rw.YaRN(factor=max(1.0, margin * length / ORIGINAL_LENGTH)))
            prompts = make_prompts(tokenizer, length, args.depths, args.wording)
            answers = [score_answer(model, prompt, answer) for prompt, answer, _ in prompts]
            rows.append(
                {
                    "wording": args.wording,
                    "length": length,
                    "margin": margin,
                    "found": [hit for hit, _ in answers],
                    "nll": [nll for _, nll in answers],
                    "ppl": rw.perplexity_curve(model, tokens, [length])[0]["ppl"],
                }
            )
            save_result("passkey_margins", {"rows": rows})
    for row in sorted(rows, key=lambda row: (row["wording"], row["length"], row["margin"])):
        mean = sum(row["nll"]) / len(row["nll"])
        print(
            f"{row['wording']:8s} {row['length']:6,} tokens, margin {row['margin']:4.2f}: {format_hits(row['found'])} "
            f"nll {mean:5.3f} (worst {max(row['nll']):4.2f})   ppl {row['ppl']:6.3f}"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("comparison", choices=["policies", "margins"])
    parser.add_argument("--length", type=int, default=12_000, help="tokens, for policies")
    parser.add_argument("--lengths", type=int, nargs="+", default=[9_500, 12_000, 16_000], help="tokens, for margins")
    parser.add_argument("--margins", type=float, nargs="+", default=[1.0, 1.1, 1.25, 1.5])
    parser.add_argument("--wording", choices=WORDINGS, default="number")
    parser.add_argument("--depths", type=int, default=8)
    args = parser.parse_args()
    model, tokenizer = rw.load("smollm2")
    compare = compare_policies if args.comparison == "policies" else compare_margins
    compare(model, tokenizer, args)


if __name__ == "__main__":
    main()
